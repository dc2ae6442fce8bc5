"""Local cosines: the smooth, orthonormal waves of which the invisible mark is made, at any size and in any place.

A row of the canvas, `CANVAS` units long whatever the picture's size, is divided into cells. Each has waves of its own,
cosines under a bell that overlaps the neighbours' (Coifman and Meyer, Comptes Rendus de l'Académie des Sciences 312,
1991). A crop takes whole cells away and leaves the waves of the others as they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

CANVAS: Final = 256
CELLS: Final = 32
WAVES: Final = 4
CELL: Final = CANVAS // CELLS

_KEPT: Final = 16
_EDGE: Final = 1024

_BANDS: Final = 8
_NOTHING: Final = 1e-5

Matrix = npt.NDArray[np.float32]
_Band = tuple[slice, slice, Matrix]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where one edge of a picture lies on the canvas: its begin and its length, in canvas units."""

    begin: float = 0.0
    length: float = float(CANVAS)

    def inside(self, slack: float) -> npt.NDArray[np.bool_]:
        """Which cells, [CELLS], with their bells, lie in the picture but for `slack` canvas units."""
        edges = CELL * np.arange(CELLS)
        starts = np.maximum(edges - CELL / 2, 0)
        ends = np.minimum(edges + CELL * 3 / 2, CANVAS)
        return np.asarray((starts >= self.begin - slack) & (ends <= self.begin + self.length + slack))


WHOLE: Final = Span()


def reduced(luma: Matrix, edge: int = _EDGE) -> Matrix:
    """A picture of which neither edge is longer than `edge`."""
    scale = edge / max(luma.shape)
    if scale >= 1:
        return luma
    return np.asarray(cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)


@lru_cache(maxsize=_KEPT)
def analysis(pixels: int, span: Span) -> Matrix:
    """What each of `pixels` equal parts of `span` gives to each wave, [CELLS * WAVES, pixels].

    A picture's coefficients are `analysis(height, …) @ picture @ analysis(width, …).T`. They are those of a canvas of
    one unit a pixel, and do not depend on how many pixels the picture has.
    """
    at = span.begin + (np.arange(pixels) + 0.5) * span.length / pixels
    cells = CELL * np.arange(CELLS)[:, None]
    inner = np.arange(CELLS)[:, None]
    rising = np.where(inner > 0, _bell(at - cells), at >= 0)
    falling = np.where(inner < CELLS - 1, _bell(cells + CELL - at), at <= CANVAS)
    waves = np.cos(np.pi / CELL * (np.arange(WAVES)[:, None] + 0.5) * (at - cells)[:, None])
    rows = (rising * falling)[:, None] * waves
    scale = np.sqrt(2 / CELL) * span.length / pixels
    return np.asarray(scale * rows.reshape(CELLS * WAVES, pixels), np.float32)


def whole(pixels: int) -> Matrix:
    """The analysis of a picture that fills the canvas."""
    return analysis(pixels, WHOLE)


@lru_cache(maxsize=_KEPT)
def synthesis(pixels: int) -> Matrix:
    """What each wave gives to each of `pixels` parts of the canvas, [pixels, CELLS * WAVES].

    The waves are orthonormal as functions, and nearly so where they are sampled; the pseudoinverse is exact.
    """
    return np.asarray(np.linalg.pinv(whole(pixels)), np.float32)


def analysed(luma: Matrix) -> Matrix:
    """What a picture that fills the canvas has of each wave, [CELLS * WAVES, CELLS * WAVES]."""
    height, width = luma.shape
    return np.asarray(_product(_analysis_bands(height), luma) @ whole(width).T, np.float32)


def synthesised(coefficients: Matrix, height: int, width: int) -> Matrix:
    """The picture, [height, width], that has these coefficients."""
    return _product(_synthesis_bands(height), coefficients @ synthesis(width).T)


@lru_cache(maxsize=_KEPT)
def _analysis_bands(pixels: int) -> tuple[_Band, ...]:
    return tuple(_bands(whole(pixels)))


@lru_cache(maxsize=_KEPT)
def _synthesis_bands(pixels: int) -> tuple[_Band, ...]:
    return tuple(_bands(synthesis(pixels)))


def _bands(matrix: Matrix) -> Iterator[_Band]:
    """Some rows at a time, the columns outside which they are next to nothing, and what is there.

    A wave is nothing outside its own cell and half of the next ones: most of a product with all columns is wasted.
    """
    least = _NOTHING * float(np.abs(matrix).max())
    for rows in np.array_split(np.arange(len(matrix)), _BANDS):
        band = matrix[rows[0] : rows[-1] + 1]
        kept = np.flatnonzero((np.abs(band) > least).any(axis=0))
        columns = slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(0, 0)
        yield slice(int(rows[0]), int(rows[-1]) + 1), columns, np.ascontiguousarray(band[:, columns])


def _product(bands: Sequence[_Band], other: Matrix) -> Matrix:
    product = np.empty((bands[-1][0].stop, other.shape[1]), np.float32)
    for rows, columns, band in bands:
        np.matmul(band, other[columns], out=product[rows])
    return product


def _bell(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From nothing half a cell before an edge of a cell, at 0, to one half a cell behind it."""
    return np.asarray(np.sin(np.pi / 4 * (1 + np.sin(np.pi / 2 * np.clip(at / (CELL / 2), -1, 1)))))
