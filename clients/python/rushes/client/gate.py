"""What the quality gate does with what it finds, from plain Python values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rushes.client.finishing import choice, put
from rushes.v1.finishing_pb2 import FindingAction, InspectionCheck, InspectionPolicy

CHECKS: Mapping[str, int] = {
    name.removeprefix("INSPECTION_CHECK_").lower(): number for name, number in InspectionCheck.items() if number
}
ACTIONS: Mapping[str, int] = {
    name.removeprefix("FINDING_ACTION_").lower(): number for name, number in FindingAction.items() if number
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRule:
    """How one check is taken: `check` is one of `CHECKS`, `action` of `ACTIONS`; no threshold: the check's own.

    `retakes` is how many takes there may be after the first, where the action is `retry`.
    """

    check: str
    action: str
    threshold: float | None = None
    retakes: int | None = None


def inspection_policy(rules: Sequence[GateRule], *, retake_within_seconds: float | None = None) -> InspectionPolicy:
    """How findings are taken. Raises `InvalidRequest` for a name that is not there; other rules are the server's."""
    policy = InspectionPolicy()
    for index, rule in enumerate(rules):
        prefix, message = f"inspection.rules[{index}].", policy.rules.add()
        put(message, prefix, "check", choice(f"{prefix}check", rule.check, CHECKS))
        put(message, prefix, "action", choice(f"{prefix}action", rule.action, ACTIONS))
        put(message, prefix, "threshold", rule.threshold)
        put(message, prefix, "retakes", rule.retakes)
    put(policy, "inspection.", "retake_within_seconds", retake_within_seconds)
    return policy
