"""Stage `inspect`: the quality gate, on the frames as they pass."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from services.postprocess.faces import FaceTrack
from services.postprocess.frames import Frames, Pixels
from services.postprocess.measures import Measures, luma_of, measured, small
from services.postprocess.motion import Flicker, Stillness


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
    NOT_FINITE = "not_finite"


class Action(enum.Enum):
    """What a finding does."""

    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"
    RETRY = "retry"

    @property
    def refuses(self) -> bool:
        """Whether a clip with such a finding is not delivered."""
        return self in (Action.FAIL, Action.RETRY)


THRESHOLDS: Final[Mapping[Check, float]] = MappingProxyType(
    {
        Check.BLACK: 0.98,
        Check.FROZEN: 0.25,
        Check.FLICKER: 4.0,
        Check.UNDEREXPOSED: 0.83,
        Check.OVEREXPOSED: 0.5,
        Check.BLUR: 13.0,
        Check.BLOCKING: 3.0,
        Check.FACE: 0.34,
        Check.NOT_FINITE: 0.0,
    }
)
"""A check finds something where its score is above this. docs/quality-gate.md says how they were calibrated.

Black and overexposed: the share of dark or clipped pixels. Frozen: seconds without a change (in a clip that moves, one
repeated frame is enough). Flicker: per cent by which up to three frames' mean luma stands out from both sides.
Underexposed: the share of the range that lies above all but the brightest hundredth of the pixels. Blur: width of the
sharpest edges in 1/256 of the longer edge. Blocking: steps on the 8x8 grid over those beside it. Face: share of the
steps between looks at which a face jumps, changes its size, vanishes or loses its eyes. Not finite: frames that have
values that are not finite; the decoder finds them, and they always end the work.
"""


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


class QualityRefused(Exception):
    """The quality gate found something that must not be delivered."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(
            f"{finding.check.value} from {finding.start:.3g} s to {finding.end:.3g} s, "
            f"score {finding.score:.3g} above {finding.threshold:.3g}"
        )
        self.finding = finding


@dataclass(slots=True)
class _Range:
    first: int
    last: int
    score: float


class Inspector:
    """Lets frames through unchanged and looks at every one; `findings` is complete after `flush`.

    It holds one small frame and one range for each check. A check whose rule is missing notes what it finds. Both
    `push` and `flush` raise `QualityRefused` as soon as it is certain that a rule refuses the clip. `worst` is each
    check's highest score so far, found or not.
    """

    name = "inspect"

    def __init__(self, *, fps: Fraction, rules: Mapping[Check, Rule] | None = None, scale: int = 1) -> None:
        """`scale` is how much larger than the model's own the pictures are."""
        self._fps = fps
        self._scale = scale
        self._rules = {check: (rules or {}).get(check, Rule()) for check in Check}
        self._open: dict[Check, _Range] = {}
        self._stillness = Stillness(fps=fps, longest=self._threshold(Check.FROZEN))
        self._flicker = Flicker()
        self._faces = FaceTrack(fps=fps)
        self._count = 0
        self.findings: list[Finding] = []
        self.worst: dict[Check, float] = {}

    def push(self, item: Frames) -> Iterator[Frames]:
        """Look at these frames, and pass them on."""
        for offset, picture in enumerate(item.pixels):
            self._look(item.first + offset, picture)
        self._refuse()
        yield item

    def flush(self) -> Iterator[Frames]:
        """Close what is open; nothing is held back."""
        still = self._stillness.end(self._count)
        if still is not None:
            self._find(Check.FROZEN, still.first, still.last, still.seconds)
        for check in list(self._open):
            self._close(check)
        score = self._faces.score()
        if score is not None:
            self._note(Check.FACE, score.value)
            if score.value > self._threshold(Check.FACE):
                self._find(Check.FACE, score.first, score.last, score.value)
        self.findings.sort(key=lambda finding: (finding.start, finding.check.value))
        self._refuse()
        yield from ()

    def _look(self, index: int, picture: Pixels) -> None:
        gray = luma_of(picture)
        measures = measured(gray, self._scale)
        self._judge_picture(index, measures)
        still = self._stillness.see(index, small(gray))
        if still is not None:
            self._find(Check.FROZEN, still.first, still.last, still.seconds)
        jump = self._flicker.see(index, measures.luma)
        self._judge(Check.FLICKER, jump.first, jump.last, jump.score)
        self._faces.look(index, gray)
        self._count = index + 1

    def _judge_picture(self, index: int, measures: Measures) -> None:
        black = measures.dark > self._threshold(Check.BLACK)
        flat = black or measures.bright > self._threshold(Check.OVEREXPOSED)
        for check, score in (
            (Check.BLACK, measures.dark),
            (Check.UNDEREXPOSED, 0.0 if black else measures.unlit),
            (Check.OVEREXPOSED, measures.bright),
            (Check.BLUR, 0.0 if flat else measures.edge_width),
            (Check.BLOCKING, measures.blocking),
        ):
            self._judge(check, index, index, score)

    def _judge(self, check: Check, first: int, last: int, score: float) -> None:
        self._note(check, score)
        found = self._open.get(check)
        if found and first > found.last + 1:
            self._close(check)
            found = None
        if score <= self._threshold(check):
            return
        if found:
            found.first, found.last = min(found.first, first), max(found.last, last)
            found.score = max(found.score, score)
        else:
            self._open[check] = _Range(first=first, last=last, score=score)

    def _close(self, check: Check) -> None:
        found = self._open.pop(check)
        self._find(check, found.first, found.last, found.score)

    def _find(self, check: Check, first: int, last: int, score: float) -> None:
        self._note(check, score)
        self.findings.append(self._finding(check, first, last, score))

    def _refuse(self) -> None:
        """Raise `QualityRefused` for the first thing found so far that a rule refuses."""
        found = [finding for finding in self.findings if finding.action.refuses]
        still = self._stillness.certain(self._count)
        ranges = [(check, each.first, each.last, each.score) for check, each in self._open.items()]
        if still is not None:
            ranges.append((Check.FROZEN, still.first, still.last, still.seconds))
        found += [self._finding(*each) for each in ranges if self._rules[each[0]].action.refuses]
        if found:
            raise QualityRefused(min(found, key=lambda finding: (finding.start, finding.check.value)))

    def _finding(self, check: Check, first: int, last: int, score: float) -> Finding:
        return Finding(
            check=check,
            action=self._rules[check].action,
            start=float(first / self._fps),
            end=float((last + 1) / self._fps),
            score=score,
            threshold=self._threshold(check),
        )

    def _note(self, check: Check, score: float) -> None:
        self.worst[check] = max(self.worst.get(check, 0.0), score)

    def _threshold(self, check: Check) -> float:
        stated = self._rules[check].threshold
        return THRESHOLDS[check] if stated is None else stated
