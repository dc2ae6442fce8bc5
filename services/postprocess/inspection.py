"""Stage `inspect`: the quality gate, on the frames as they pass."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from services.postprocess.faces import FaceTrack
from services.postprocess.frames import Frames, Pixels
from services.postprocess.measures import Gray, Measures, difference, luma_of, measured, small


class Check(enum.Enum):
    """What the quality gate looks for."""

    BLACK = "black"
    FROZEN = "frozen"
    FLICKER = "flicker"
    UNDEREXPOSED = "underexposed"
    OVEREXPOSED = "overexposed"
    BLUR = "blur"
    BLOCKING = "blocking"
    FACE = "face"


class Action(enum.Enum):
    """What a finding does."""

    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


THRESHOLDS: Final[Mapping[Check, float]] = MappingProxyType(
    {
        Check.BLACK: 0.98,
        Check.FROZEN: 0.25,
        Check.FLICKER: 5.0,
        Check.UNDEREXPOSED: 0.85,
        Check.OVEREXPOSED: 0.5,
        Check.BLUR: 24.0,
        Check.BLOCKING: 3.0,
        Check.FACE: 0.34,
    }
)
"""A check finds something where its score is above this.

Black, under- and overexposed: the share of dark or clipped pixels. Frozen: seconds without a change (in a clip that
moves, one repeated frame is enough). Flicker: levels by which a frame's mean luma stands out from both neighbours.
Blur: width of the sharpest edges in 1/256 of the longer edge. Blocking: steps on the 8x8 grid over those beside it.
Face: share of the steps between looks at which a face jumps, changes its size, vanishes or loses its eyes.
"""

_STILL = 0.05
_MOVING = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How one check is taken."""

    action: Action = Action.NOTE
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found over a range of time in seconds; `score` is the worst value in it."""

    check: Check
    action: Action
    start: float
    end: float
    score: float
    threshold: float


@dataclass(slots=True)
class _Range:
    first: int
    last: int
    score: float


@dataclass(slots=True)
class _Still:
    """A run of frames that repeat the one at `first`."""

    first: int
    repeated: int = 0
    motion_before: float = 0.0


@dataclass(slots=True)
class _Past:
    """The frames that the next one is compared with: small luma and mean luma."""

    gray: Gray | None = None
    lumas: list[float] = field(default_factory=list)
    motion: float = 0.0


class Inspector:
    """Lets frames through unchanged and looks at every one; `findings` is complete after `flush`.

    It holds one small frame and one range for each check. A check whose rule is missing notes what it finds.
    """

    name = "inspect"

    def __init__(self, *, fps: Fraction, rules: Mapping[Check, Rule] | None = None) -> None:
        self._fps = fps
        self._rules = {check: (rules or {}).get(check, Rule()) for check in Check}
        self._open: dict[Check, _Range] = {}
        self._past = _Past()
        self._still = _Still(first=0)
        self._faces = FaceTrack(fps=fps)
        self._count = 0
        self.findings: list[Finding] = []

    def push(self, item: Frames) -> Iterator[Frames]:
        """Look at these frames, and pass them on."""
        for offset, picture in enumerate(item.pixels):
            self._look(item.first + offset, picture)
        yield item

    def flush(self) -> Iterator[Frames]:
        """Close what is open; nothing is held back."""
        self._end_still(self._count, motion_after=0.0)
        for check in list(self._open):
            self._close(check)
        score = self._faces.score()
        if score is not None and score.value > self._threshold(Check.FACE):
            self._find(Check.FACE, score.first, score.last, score.value)
        self.findings.sort(key=lambda finding: (finding.start, finding.check.value))
        yield from ()

    def _look(self, index: int, picture: Pixels) -> None:
        gray = luma_of(picture)
        measures = measured(gray)
        self._judge_picture(index, measures)
        self._judge_motion(index, small(gray), measures.luma)
        self._faces.look(index, gray)
        self._count = index + 1

    def _judge_picture(self, index: int, measures: Measures) -> None:
        black = measures.dark > self._threshold(Check.BLACK)
        flat = black or measures.bright > self._threshold(Check.OVEREXPOSED)
        self._judge(Check.BLACK, index, measures.dark)
        self._judge(Check.UNDEREXPOSED, index, 0.0 if black else measures.dark)
        self._judge(Check.OVEREXPOSED, index, measures.bright)
        self._judge(Check.BLUR, index, 0.0 if flat else measures.edge_width)
        self._judge(Check.BLOCKING, index, measures.blocking)

    def _judge_motion(self, index: int, gray: Gray, luma: float) -> None:
        past = self._past
        if past.gray is not None:
            change = difference(gray, past.gray)
            if change < _STILL:
                self._still.repeated += 1
            else:
                self._end_still(index, motion_after=change)
                self._still = _Still(first=index, motion_before=change)
        past.gray = gray
        past.lumas = [*past.lumas[-2:], luma]
        if len(past.lumas) == 3:
            before, middle, after = past.lumas
            rises = (middle - before) * (middle - after) > 0
            self._judge(Check.FLICKER, index - 1, min(abs(middle - before), abs(middle - after)) if rises else 0.0)

    def _end_still(self, index: int, *, motion_after: float) -> None:
        """A run without a change ends before frame `index`."""
        still = self._still
        seconds = float(still.repeated / self._fps)
        repeats = still.repeated and min(still.motion_before, motion_after) > _MOVING
        if seconds > self._threshold(Check.FROZEN) or repeats:
            self._find(Check.FROZEN, still.first, index - 1, seconds)

    def _judge(self, check: Check, index: int, score: float) -> None:
        found = self._open.get(check)
        if score <= self._threshold(check):
            if found and index > found.last + 1:
                self._close(check)
        elif found:
            found.last, found.score = index, max(found.score, score)
        else:
            self._open[check] = _Range(first=index, last=index, score=score)

    def _close(self, check: Check) -> None:
        found = self._open.pop(check)
        self._find(check, found.first, found.last, found.score)

    def _find(self, check: Check, first: int, last: int, score: float) -> None:
        self.findings.append(
            Finding(
                check=check,
                action=self._rules[check].action,
                start=float(first / self._fps),
                end=float((last + 1) / self._fps),
                score=score,
                threshold=self._threshold(check),
            )
        )

    def _threshold(self, check: Check) -> float:
        stated = self._rules[check].threshold
        return THRESHOLDS[check] if stated is None else stated
