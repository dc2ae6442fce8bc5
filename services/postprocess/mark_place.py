"""Where a picture that may have been cropped lies on the canvas of the invisible mark.

The sync is looked for in the picture made even: its fine detail over how strong that is around. Where it stands out
the edges are then moved until the sync and the lattice of the chips are met best.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from itertools import product
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.mark_basis import CANVAS, WHOLE, Matrix, Span, analysis, reduced
from services.postprocess.mark_carriers import STEPS, Carriers

_SMALL_EDGE: Final = 512
_SLACK: Final = 2.0
_LEAST: Final = 0.89
_SHARE_STEP: Final = 0.01
_FINE: Final = 1.5
_AROUND: Final = 6.0
_REFINEMENTS: Final = (1.0, 0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a picture lies: its width and its height on the canvas."""

    across: Span = WHOLE
    down: Span = WHOLE

    def seen(self) -> npt.NDArray[np.bool_]:
        """Which cells, [CELLS, CELLS], are in the picture."""
        return np.outer(self.down.inside(_SLACK), self.across.inside(_SLACK))

    def coefficients(self, luma: Matrix) -> Matrix:
        """What a picture here has of each wave."""
        height, width = luma.shape
        return np.asarray(analysis(height, self.down) @ luma @ analysis(width, self.across).T, np.float32)


def cropped_places(luma: Matrix, carriers: Carriers, count: int) -> list[tuple[float, Place]]:
    """The `count` places of a cropped picture in which most of the sync is found, and how sure each is.

    That is the height of its correlation in standard deviations.
    """
    spectrum = np.fft.rfft2(carriers.pattern)
    small = reduced(luma, _SMALL_EDGE)
    sizes = np.rint(CANVAS * np.arange(1.0, _LEAST - 1e-6, -_SHARE_STEP)).astype(int)
    found = [_correlated(small, spectrum, int(width), int(height)) for width, height in product(sizes, sizes)]
    return nlargest(count, found, key=lambda one: one[0])


def _correlated(luma: Matrix, pattern: npt.NDArray[np.complex128], width: int, height: int) -> tuple[float, Place]:
    """Where a picture that takes `width` and `height` of the canvas shows most of the sync."""
    even = _evened(np.asarray(cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA), np.float32))
    spectrum = np.fft.rfft2(even, s=(CANVAS, CANVAS))
    surface = np.fft.irfft2(np.conj(spectrum) * pattern, s=(CANVAS, CANVAS))
    allowed = surface[: CANVAS - height + 1, : CANVAS - width + 1]
    top, left = np.unravel_index(int(allowed.argmax()), allowed.shape)
    place = Place(
        across=Span(begin=float(left), length=float(width)), down=Span(begin=float(top), length=float(height))
    )
    return float(allowed[top, left] / max(float(surface.std()), 1e-9)), place


def _evened(luma: Matrix) -> Matrix:
    fine = luma - cv2.GaussianBlur(luma, (0, 0), _FINE)
    return np.asarray(fine / (np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), _AROUND)) + 1), np.float32)


def refined(luma: Matrix, carriers: Carriers, place: Place) -> Place:
    """The place near `place` that meets sync and lattice best; edges are moved in ever smaller steps."""
    small = reduced(luma, _SMALL_EDGE)
    for step in _REFINEMENTS:
        lines = analysis(small.shape[0], place.down) @ small
        tried = [Place(across=span, down=place.down) for span in _near(place.across, step)]
        place = max(tried, key=partial(_met_across, lines, carriers))
        columns = small @ analysis(small.shape[1], place.across).T
        tried = [Place(across=place.across, down=span) for span in _near(place.down, step)]
        place = max(tried, key=partial(_met_down, columns, carriers))
    return place


def _near(span: Span, step: float) -> Iterator[Span]:
    for begin, end in product((0.0, -step, step), repeat=2):
        yield Span(begin=span.begin + begin, length=span.length + end - begin)


def _met_across(lines: Matrix, carriers: Carriers, place: Place) -> float:
    return _met(lines @ analysis(lines.shape[1], place.across).T, carriers, place)


def _met_down(columns: Matrix, carriers: Carriers, place: Place) -> float:
    return _met(analysis(columns.shape[0], place.down) @ columns, carriers, place)


def _met(coefficients: Matrix, carriers: Carriers, place: Place) -> float:
    """How far sync and lattice stand out of chance together, in standard deviations."""
    seen = place.seen()
    return carriers.sureness(coefficients) + max(carriers.chips(coefficients, seen, step).sureness for step in STEPS)
