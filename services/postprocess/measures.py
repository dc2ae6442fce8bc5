"""What a picture, and two neighbouring pictures, are measured by in the quality gate."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.frames import Pixels

Gray = npt.NDArray[np.uint8]

_EDGE = 256
_DARK = 24
_BRIGHT = 250
_BLOCK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """One picture: `luma` is its mean (0 to 255), `dark` and `bright` are shares of its pixels.

    `edge_width` is how many pixels its sharpest edges take, as shares of 256 pixels of the longer edge; `blocking` is
    how much stronger the steps on an 8x8 grid are than those beside it, 1 where there is no grid.
    """

    luma: float
    dark: float
    bright: float
    edge_width: float
    blocking: float


def luma_of(picture: Pixels) -> Gray:
    """The luma of `picture` at its own size."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def small(gray: Gray) -> Gray:
    """`gray` with its longer edge at most 256 pixels."""
    scale = _EDGE / max(gray.shape)
    if scale >= 1:
        return gray
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def measured(gray: Gray) -> Measures:
    """The measures of one picture's luma."""
    reduced = small(gray)
    return Measures(
        luma=float(reduced.mean()),
        dark=float((reduced < _DARK).mean()),
        bright=float((reduced >= _BRIGHT).mean()),
        edge_width=_edge_width(reduced) * _EDGE / max(reduced.shape),
        blocking=_blocking(gray),
    )


def difference(gray: Gray, before: Gray) -> float:
    """The mean absolute difference of two small pictures, in levels."""
    return float(cv2.absdiff(gray, before).mean())


def _edge_width(gray: Gray) -> float:
    """The contrast of the picture over its steepest slopes: 1 or 2 pixels when sharp, and the more the more blurred."""
    across = cv2.Scharr(gray, cv2.CV_32F, 1, 0)
    down = cv2.Scharr(gray, cv2.CV_32F, 0, 1)
    # A Scharr kernel adds up 32 steps of one level; halves of a level fit into a byte.
    slopes = np.asarray(cv2.convertScaleAbs(cv2.magnitude(across, down), alpha=2 / 32), np.uint8)
    contrast = _level(gray, 0.99) - _level(gray, 0.01)
    return contrast / max(_level(slopes, 0.998) / 2, 0.5)


def _level(levels: Gray, share: float) -> float:
    """The level that `share` of the values do not exceed."""
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel().cumsum()
    return float(np.searchsorted(counts, share * levels.size))


def _blocking(gray: Gray) -> float:
    height, width = (size - size % _BLOCK for size in gray.shape)
    if min(height, width) < 2 * _BLOCK:
        return 1.0
    levels = gray[:height, :width].astype(np.int16)
    ratios = []
    for steps in (np.abs(np.diff(levels, axis=1)).mean(axis=0), np.abs(np.diff(levels, axis=0)).mean(axis=1)):
        on_grid = steps[_BLOCK - 1 :: _BLOCK]
        beside = np.concatenate([steps[_BLOCK - 2 :: _BLOCK][: len(on_grid)], steps[_BLOCK::_BLOCK]])
        # Medians: the edge of a thing in the picture may lie on the grid, but not on every line of it.
        ratios.append((np.median(on_grid) + 0.25) / (np.median(beside) + 0.25))
    return float(np.mean(ratios))
