"""The takes of one generation: when the quality gate refuses a clip, whether and with which seed it is made again."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rushes.v1 import finishing_pb2, generation_pb2
from services.chassis.errors import RushesError

REASONS = frozenset({"QUALITY_GATE", "DECODE_NOT_FINITE", "LATENTS_NOT_FINITE", "PREDICTION_BLACK"})
"""Reasons of a stage's refusal that speak of the clip, and so of its seed."""

DEFAULT_RETAKES = 2
DEFAULT_BLACK_SHARE = 0.98
_CHECKS: Mapping[str, finishing_pb2.InspectionCheck.ValueType] = {
    name.removeprefix("INSPECTION_CHECK_").lower(): number for name, number in finishing_pb2.InspectionCheck.items()
}
_REFUSING = (finishing_pb2.FINDING_ACTION_FAIL, finishing_pb2.FINDING_ACTION_RETRY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a take was refused."""

    finding: finishing_pb2.Finding
    reason: str


def refusal(error: RushesError, policy: finishing_pb2.InspectionPolicy, *, seconds: float) -> Refusal | None:
    """What a stage's error says of a clip of so many seconds; None if it speaks of something else."""
    check = _CHECKS.get(error.metadata.get("check", ""), finishing_pb2.INSPECTION_CHECK_UNSPECIFIED)
    if error.reason not in REASONS or not check:
        return None
    rule = rule_for(check, policy)
    action = rule.action if rule is not None and rule.action in _REFUSING else finishing_pb2.FINDING_ACTION_FAIL
    # A prediction that is refused is the whole clip's.
    facts = {"start": 0.0, "end": seconds, "score": 0.0, "threshold": 0.0} | dict(error.metadata)
    start, end, score, threshold = (float(facts[name]) for name in ("start", "end", "score", "threshold"))
    finding = finishing_pb2.Finding(
        check=check, action=action, start_seconds=start, end_seconds=end, score=score, threshold=threshold
    )
    return Refusal(finding=finding, reason=error.reason)


def rule_for(
    check: finishing_pb2.InspectionCheck.ValueType, policy: finishing_pb2.InspectionPolicy
) -> finishing_pb2.InspectionRule | None:
    """The rule of a check, if the policy has one."""
    return next((rule for rule in policy.rules if rule.check == check), None)


def black_share(policy: finishing_pb2.InspectionPolicy) -> float:
    """How much of a prediction must be dark for denoising to end; 0 where black clips are only to be noted."""
    rule = rule_for(finishing_pb2.INSPECTION_CHECK_BLACK, policy)
    if rule is None:
        return DEFAULT_BLACK_SHARE
    threshold = rule.threshold if rule.HasField("threshold") else DEFAULT_BLACK_SHARE
    return min(1.0, max(0.0, threshold)) if rule.action in _REFUSING else 0.0


def seed_of(first: int, take: int) -> int:
    """The seed of a take, 32 bits: the first take's own, and for a later one drawn from that and its number."""
    if take == 1:
        return first
    return int.from_bytes(hashlib.sha256(f"{first}/{take}".encode()).digest()[:4], "big")


class Takes:
    """Which take of a generation is made, with which seed. `past` are the events of earlier attempts."""

    def __init__(
        self, spec: generation_pb2.GenerationSpec, past: Iterable[generation_pb2.GenerationEvent] = ()
    ) -> None:
        self._policy = spec.inspection
        self._first = spec.seed
        self._seconds = spec.num_frames / max(1, spec.fps)
        self._longest = 0.0
        self.number = 1
        for event in past:
            if event.HasField("retaken"):
                self.number = event.retaken.take

    @property
    def seed(self) -> int:
        """The seed of this take."""
        return seed_of(self._first, self.number)

    def again(self, error: RushesError, *, lasted: float, elapsed: float) -> generation_pb2.RetakenEvent | None:
        """Begin the next take, if `error` refuses this one and its rule allows it; else None.

        This take has `lasted` so many seconds, and the generation is `elapsed` seconds old.
        """
        refused = refusal(error, self._policy, seconds=self._seconds)
        if refused is None or refused.finding.action != finishing_pb2.FINDING_ACTION_RETRY:
            return None
        rule = rule_for(refused.finding.check, self._policy)
        retakes = rule.retakes if rule is not None and rule.HasField("retakes") else DEFAULT_RETAKES
        self._longest = max(self._longest, lasted)
        late = elapsed + self._longest > self._policy.retake_within_seconds
        if self.number > retakes or (late and self._policy.HasField("retake_within_seconds")):
            return None
        refused_seed, self.number = self.seed, self.number + 1
        return generation_pb2.RetakenEvent(
            take=self.number,
            seed=self.seed,
            refused_seed=refused_seed,
            finding=refused.finding,
            reason=refused.reason,
        )

    def failure(self, stage: str, error: RushesError, *, retryable: bool) -> generation_pb2.Failure:
        """The end of a generation whose last take failed."""
        refused = refusal(error, self._policy, seconds=self._seconds)
        takes = f" This was take {self.number}, the last." if refused is not None and self.number > 1 else ""
        return generation_pb2.Failure(
            reason=error.reason,
            message=f"{error.message}{takes}",
            stage=stage,
            retryable=retryable,
            finding=refused.finding if refused is not None else None,
            takes=self.number,
        )
