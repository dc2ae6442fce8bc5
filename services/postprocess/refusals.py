"""What the caller of a rendering hears when a stage breaks, the quality gate refuses the clip, or signing fails."""

from services.chassis.errors import FailedPrecondition, Internal, RushesError
from services.postprocess.chain import StageFailed
from services.postprocess.decode import NotFinite
from services.postprocess.inspection import Check, Finding, QualityRefused
from services.postprocess.plan import RenderPlan


def quality_refusal(finding: Finding) -> FailedPrecondition:
    """The refusal of a clip for what was found in it."""
    return FailedPrecondition(
        f"The quality gate refused the clip: {QualityRefused(finding)}.",
        reason="QUALITY_GATE",
        metadata=_facts(finding.check, finding.start, finding.end, finding.score, finding.threshold),
    )


def stage_failure(failed: StageFailed, plan: RenderPlan) -> RushesError:
    """The failure of a stage. Values that are not finite are not its fault: the same latents give them everywhere."""
    if isinstance(failed.__cause__, NotFinite):
        frame = failed.__cause__.frame
        start, end = float(frame / plan.fps), float(plan.num_frames / plan.fps)
        return FailedPrecondition(
            f"Frame {frame} came out of the decoder with values that are not finite.",
            reason="DECODE_NOT_FINITE",
            metadata={
                "stage": failed.stage,
                "frame": str(frame),
                **_facts(Check.NOT_FINITE, start, end, float(plan.num_frames - frame), 0.0),
            },
        )
    return Internal(f"The stage {failed.stage} failed.", reason="STAGE_FAILED", metadata={"stage": failed.stage})


def signing_failure() -> FailedPrecondition:
    """The failure to sign a finished file; why is the operator's to know."""
    return FailedPrecondition("The finished file could not be signed.", reason="SIGNING_FAILED")


def _facts(check: Check, start: float, end: float, score: float, threshold: float) -> dict[str, str]:
    """A finding as metadata of an error; a program reads it back."""
    numbers = {"start": start, "end": end, "score": score, "threshold": threshold}
    return {"check": check.value, **{name: f"{value:.6g}" for name, value in numbers.items()}}
