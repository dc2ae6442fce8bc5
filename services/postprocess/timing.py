"""What the stages' measurements add up to."""

from collections.abc import Sequence

from services.postprocess.chain import Work


def busy_seconds(work: Sequence[Work], stage: str) -> float:
    """How long `stage` worked."""
    return sum(each.duration for each in work if each.stage == stage)


def tail_seconds(work: Sequence[Work], stage: str, *, beside: str) -> float:
    """How long `stage` worked while `beside` did not."""
    others = [(each.start, each.start + each.duration) for each in work if each.stage == beside]
    return sum(
        each.duration
        - sum(max(0.0, min(end, each.start + each.duration) - max(start, each.start)) for start, end in others)
        for each in work
        if each.stage == stage
    )
