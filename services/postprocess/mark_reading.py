"""Reads the invisible mark back, from a clip that may have been encoded again, scaled and cropped.

A video encoder keeps the mark in frames that it codes by themselves, and loses it, where the picture moves, in those
that it predicts from others: there the mark goes along with the picture. So frames count by how much of the sync they
still show, and the mark's place is looked for in the first frame as well as in the mean of all. The check decides
whether there is a mark.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from heapq import heappop, heappush, nlargest
from itertools import product
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.frames import Pixels
from services.postprocess.mark_code import BITS, CANVAS, STRENGTH, Canvas, Code, Sums, identify

_READ_EDGE: Final = 512
_SYNC_RADIUS: Final = (4, 32)
_LEAST_SHARE: Final = 0.895
_SHARE_STEP: Final = 0.015
_REFINEMENTS: Final = 6
_FIRST: Final = 4
_BEST: Final = 8
_ALONE: Final = 3
_LOOKED_AT: Final = 2
_TRIED: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What frames were found to carry; `mark_id` is None where there is no mark whose check is right.

    `certainty` is how far the sync stands out of chance, in standard deviations of its correlation; `sums` are those of
    the bits, [96], before their check, where the sync stands out most.
    """

    mark_id: int | None
    certainty: float
    sums: Sums


UNREAD: Final = Reading(mark_id=None, certainty=0.0, sums=np.zeros(BITS, np.float32))
"""What is read where there is nothing to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a picture lies on the canvas: its size as shares of the canvas, its corner in canvas pixels."""

    across: float
    down: float
    left: float
    top: float

    def moved(self, across: float, down: float, left: float, top: float) -> "_Place":
        return _Place(across=self.across + across, down=self.down + down, left=self.left + left, top=self.top + top)


_WHOLE: Final = _Place(across=1.0, down=1.0, left=0.0, top=0.0)


def read_mark(frames: Iterable[Pixels]) -> Reading:
    """The mark in pictures [h, w, 3] of one clip, whole or cropped. Raises `ValueError` when there are no pictures.

    The first picture is looked at most closely, and should be one that its encoder coded by itself.
    """
    code = Code()
    pictures = _gathered(frames, code)
    surest: Reading | None = None
    for certainty, place, seen in _places(pictures, code):
        at = place if place == _WHOLE else _refined(place, partial(_agreement, seen, code))
        readings = [code.read(_placed(one, at)) for one in pictures]
        together = _together(readings)
        reading = Reading(mark_id=_identified(readings, together), certainty=certainty, sums=together)
        if reading.mark_id is not None:
            return reading
        surest = reading if surest is None or certainty > surest.certainty else surest
    if surest is None:
        raise ValueError("there are no pictures to read")
    return surest


def _gathered(frames: Iterable[Pixels], code: Code) -> list[Canvas]:
    """The luma of the mean picture, of the first ones, and of those that show most of the sync, reduced in size."""
    total: Canvas | None = None
    count = 0
    first: list[Canvas] = []
    best: list[tuple[float, int, Canvas]] = []
    for picture in frames:
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        total = luma if total is None else total + luma
        count += 1
        reduced = _reduced(luma)
        if count <= _FIRST:
            first.append(reduced)
            continue
        _, synced = code.read(_placed(reduced, _WHOLE))
        heappush(best, (synced, count, reduced))
        if len(best) > _BEST:
            heappop(best)
    if total is None:
        raise ValueError("there are no pictures to read")
    return [_reduced(np.asarray(total / count, np.float32)), *first, *(one for _, _, one in sorted(best, reverse=True))]


def _reduced(luma: Canvas) -> Canvas:
    scale = _READ_EDGE / max(luma.shape)
    if scale >= 1:
        return luma
    return np.asarray(cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)


def _places(pictures: Sequence[Canvas], code: Code) -> Iterator[tuple[float, _Place, Canvas]]:
    """Where the clip may lie on the canvas, by what picture, and how sure that is: whole, and then cropped."""
    yield max(_correlated(one, code, 1.0, 1.0)[0] for one in pictures[:_LOOKED_AT]), _WHOLE, pictures[0]
    shares = np.arange(1.0, _LEAST_SHARE - 1e-6, -_SHARE_STEP)
    for picture in pictures[:_LOOKED_AT]:
        found = [_correlated(picture, code, across, down) for across, down in product(shares, shares)]
        for certainty, place in nlargest(_TRIED, found, key=lambda one: one[0]):
            yield certainty, place, picture


def _correlated(picture: Canvas, code: Code, across: float, down: float) -> tuple[float, _Place]:
    """How far a picture of these shares stands out of chance, by phase correlation with the sync, and where it lies."""
    width, height = round(CANVAS * across), round(CANVAS * down)
    reduced = cv2.resize(picture - picture.mean(), (width, height), interpolation=cv2.INTER_AREA)
    window = np.outer(np.hanning(height) ** 0.25, np.hanning(width) ** 0.25)
    spectrum = np.fft.rfft2(reduced * window, s=(CANVAS, CANVAS))
    phases = np.where(_sync_band(), np.conj(spectrum) / (np.abs(spectrum) + 1e-3), 0)
    surface = np.fft.irfft2(phases * code.sync_spectrum, s=(CANVAS, CANVAS))
    allowed = surface[: CANVAS - height + 1, : CANVAS - width + 1]
    top, left = np.unravel_index(int(allowed.argmax()), allowed.shape)
    place = _Place(across=width / CANVAS, down=height / CANVAS, left=float(left), top=float(top))
    return float(allowed[top, left] / surface.std()), place


@cache
def _sync_band() -> npt.NDArray[np.bool_]:
    rows, columns = np.fft.fftfreq(CANVAS)[:, None] * CANVAS, np.fft.rfftfreq(CANVAS)[None] * CANVAS
    radius = np.hypot(rows, columns)
    return np.asarray((radius >= _SYNC_RADIUS[0]) & (radius <= _SYNC_RADIUS[1]))


def _together(readings: Sequence[tuple[Sums, float]]) -> Sums:
    """The sums of several pictures, each by how much of the sync it shows."""
    total = sum((max(0.0, synced) ** 2 * sums for sums, synced in readings), start=np.zeros(BITS, np.float32))
    return np.asarray(total, np.float32)


def _identified(readings: Sequence[tuple[Sums, float]], together: Sums) -> int | None:
    """The id that the pictures spell together, or one of those that show most of the sync."""
    ranked = sorted(readings, key=lambda one: one[1], reverse=True)
    candidates = [together, *(sums for sums, _ in ranked[:_ALONE])]
    return next((found for found in map(identify, candidates) if found is not None), None)


def _placed(picture: Canvas, place: _Place) -> Canvas:
    """`picture` on the canvas at `place`, its mean level around it."""
    size = (max(1, round(CANVAS * place.across)), max(1, round(CANVAS * place.down)))
    reduced = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    scale_x, scale_y = CANVAS * place.across / size[0], CANVAS * place.down / size[1]
    # Pixel centres lie at halves, and OpenCV counts them from zero.
    shift = np.array(
        [[scale_x, 0, place.left + (scale_x - 1) / 2], [0, scale_y, place.top + (scale_y - 1) / 2]], np.float32
    )
    return np.asarray(
        cv2.warpAffine(
            reduced,
            shift,
            (CANVAS, CANVAS),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=float(picture.mean()),
        ),
        np.float32,
    )


def _agreement(picture: Canvas, code: Code, place: _Place) -> float:
    sums, synced = code.read(_placed(picture, place))
    return float(np.minimum(np.abs(sums), STRENGTH).sum()) + 4 * synced


def _refined(place: _Place, score: Callable[[_Place], float]) -> _Place:
    """The place near `place` with the best `score`, by moving one edge at a time in ever smaller steps."""
    best, best_score = place, score(place)
    step = 1.0
    for _ in range(_REFINEMENTS):
        improved = True
        while improved:
            improved = False
            for move in _moves(step):
                tried = best.moved(*move)
                tried_score = score(tried)
                if tried_score > best_score:
                    best, best_score, improved = tried, tried_score, True
        step /= 2
    return best


def _moves(step: float) -> Iterator[tuple[float, float, float, float]]:
    """Each edge of the picture outwards and inwards by `step` canvas pixels, and the whole picture to each side."""
    share = step / CANVAS
    for sign in (1, -1):
        yield sign * share, 0, 0, 0
        yield 0, sign * share, 0, 0
        yield sign * share, 0, -sign * step, 0
        yield 0, sign * share, 0, -sign * step
        yield 0, 0, sign * step, 0
        yield 0, 0, 0, sign * step
