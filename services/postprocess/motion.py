"""What neighbouring frames say of each other in the quality gate: pictures that stand still, and light that jumps."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction

from services.postprocess.measures import Gray, change

_STILL = 8.0
_MOVING = 24.0
"""Levels a second by which the place of most change differs: below the first nothing moves, above the other it does."""
_REPEATED = 0.1
_FLASH = 3
_DARKNESS = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Still:
    """Frames `first` to `last` show one picture; `seconds` is how long it stays after it was first shown."""

    first: int
    last: int
    seconds: float


class Stillness:
    """Finds pictures that stay longer than `longest` seconds, and repeated ones between frames that move."""

    def __init__(self, *, fps: Fraction, longest: float) -> None:
        self._fps = fps
        self._longest = longest
        self._gray: Gray | None = None
        self._first = 0
        self._repeated = 0
        self._greatest = 0.0
        self._before = 0.0
        self._changes: deque[float] = deque(maxlen=3)

    def see(self, index: int, gray: Gray) -> Still | None:
        """Frame `index`; a standstill that ended before it."""
        past, self._gray = self._gray, gray
        if past is None:
            return None
        rate = change(gray, past) * float(self._fps)
        self._changes.append(rate)
        if rate < _STILL:
            self._repeated += 1
            self._greatest = max(self._greatest, rate)
            return None
        found = self.end(index, rate) or self._repeat(index)
        self._first, self._repeated, self._greatest, self._before = index, 0, 0.0, rate
        return found

    def end(self, index: int, after: float = 0.0) -> Still | None:
        """The standstill that ends before frame `index`, where the change is `after` levels a second."""
        return self._still(index) if self._repeated and (self._is_long or self._is_repeat(after)) else None

    def certain(self, index: int) -> Still | None:
        """The standstill that has lasted too long already, whatever follows after the frames before `index`."""
        return self._still(index) if self._is_long else None

    def _repeat(self, index: int) -> Still | None:
        """A picture repeated with a little noise, which is told by how much its neighbours move."""
        if len(self._changes) < 3 or self._repeated:
            return None
        before, middle, after = self._changes
        if min(before, after) > _MOVING and middle < _REPEATED * min(before, after):
            return Still(first=index - 2, last=index - 1, seconds=float(1 / self._fps))
        return None

    def _still(self, index: int) -> Still:
        return Still(first=self._first, last=index - 1, seconds=float(self._repeated / self._fps))

    @property
    def _is_long(self) -> bool:
        return float(self._repeated / self._fps) > self._longest

    def _is_repeat(self, after: float) -> bool:
        moves = min(self._before, after)
        return moves > _MOVING and self._greatest < _REPEATED * moves


@dataclass(frozen=True, kw_only=True, slots=True)
class Jump:
    """Frames `first` to `last` stand out from both sides by `score` per cent of the brightest of them all."""

    first: int
    last: int
    score: float


class Flicker:
    """Finds up to three neighbours whose mean luma stands out from the frames on both of their sides."""

    def __init__(self) -> None:
        self._lumas: deque[float] = deque(maxlen=_FLASH + 2)

    def see(self, index: int, luma: float) -> Jump:
        """Frame `index`; what stands out most of the frames right before it, be it by nothing."""
        self._lumas.append(luma)
        lumas = list(self._lumas)
        jumps = [
            Jump(
                first=index - count, last=index - 1, score=_stands_out(lumas[-count - 2], lumas[-count - 1 : -1], luma)
            )
            for count in range(1, len(lumas) - 1)
        ]
        return max(jumps, key=lambda jump: jump.score, default=Jump(first=index, last=index, score=0.0))


def _stands_out(before: float, inside: list[float], after: float) -> float:
    above = min(inside) - max(before, after)
    below = min(before, after) - max(inside)
    return 100 * max(0.0, above, below) / (max(before, after, *inside) + _DARKNESS)
