"""Asking postprocess what it would make of a spec, before anything is queued for it."""

from rushes.v1 import generation_pb2, postprocess_pb2
from services.chassis.errors import FieldViolation, InvalidRequest, RushesError
from services.gateway.pool import Pool
from services.gateway.spec import DEFAULT_ARTIFACTS, DEFAULT_CRF, render_start
from services.gateway.stages import plan_render

PLAN_TIMEOUT_SECONDS = 10.0

_PLAIN_VIDEO = postprocess_pb2.VideoSettings(
    codec=postprocess_pb2.VIDEO_CODEC_H264, effort=postprocess_pb2.ENCODING_EFFORT_FAST, crf=DEFAULT_CRF
)


class Rehearsal:
    """Has a resolved spec judged by the stage that will finish the clip, so that no device works for a bad order."""

    def __init__(self, postprocessors: Pool[postprocess_pb2.DescribePostprocessResponse]) -> None:
        self._postprocessors = postprocessors

    async def check(self, spec: generation_pb2.GenerationSpec) -> None:
        """Fill in the encoding in force. Raises `InvalidRequest` for what postprocess would refuse.

        A spec that asks for nothing special is not asked about; where no postprocess answers, the spec is judged when
        it is rendered.
        """
        if not _special(spec):
            return
        for endpoint in self._postprocessors.endpoints:
            described = endpoint.description
            if not endpoint.reachable or described is None or described.model != spec.model:
                continue
            try:
                accepted = await plan_render(endpoint, render_start(spec), timeout=PLAN_TIMEOUT_SECONDS)
            except InvalidRequest as refused:
                raise _of_spec(refused) from None
            except RushesError:
                continue
            spec.video.CopyFrom(accepted.video)
            return


def _special(spec: generation_pb2.GenerationSpec) -> bool:
    asks = spec.HasField("finish") or spec.HasField("inspection") or spec.video != _PLAIN_VIDEO
    return asks or tuple(spec.artifacts) != DEFAULT_ARTIFACTS


def _of_spec(refused: InvalidRequest) -> InvalidRequest:
    """The refusal in the words of the public request."""
    violations = [
        FieldViolation(
            field="spec." + one.field.removeprefix("start.").removeprefix("shape."),
            rule=one.rule,
        )
        for one in refused.violations
    ]
    return InvalidRequest(violations=violations, reason=refused.reason)
