"""What a picture, and two neighbouring pictures, are measured by in the quality gate."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.frames import Pixels

Gray = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float32]

_EDGE = 256
_LEAST_EDGE = 192
_DARK = 24
_BRIGHT = 250
_BLOCK = 8
_CELLS = 32
_NEIGHBOURHOOD = 11
_FLAT = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """One picture: `luma` is its mean (0 to 255), `dark` and `bright` are shares of its pixels.

    `dark` counts as FFmpeg's `blackdetect` does by default, below a tenth of the range. `unlit` is the share of the
    range that lies above all but the brightest hundredth of the pixels. `edge_width` is how many pixels its sharpest
    edges take, as shares of 256 pixels of the longer edge; `blocking` is how much stronger the steps on an 8x8 grid are
    than those beside it, 1 where there is no grid.
    """

    luma: float
    dark: float
    bright: float
    unlit: float
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


def measured(gray: Gray, scale: int = 1) -> Measures:
    """The measures of one picture's luma, which was made `scale` times as wide and high as the model gave it."""
    reduced = small(gray)
    return Measures(
        luma=float(reduced.mean()),
        dark=float((reduced < _DARK).mean()),
        bright=float((reduced >= _BRIGHT).mean()),
        unlit=1 - _level(reduced, 0.99) / 255,
        edge_width=_edge_width(reduced, max(gray.shape) // scale),
        blocking=_blocking(gray, scale),
    )


def change(gray: Gray, before: Gray) -> float:
    """The mean absolute difference, in levels, of the 8x8 pixels of two small pictures that differ most.

    A mean over the whole picture would call a small thing that moves a still picture.
    """
    return float(cv2.blur(cv2.absdiff(gray, before).astype(np.float32), (_BLOCK, _BLOCK)).max())


def _edge_width(gray: Gray, given: int) -> float:
    """The contrast around a place over the steepest slope there, at the sharpest of the places with most contrast.

    About 2.5 deviations of the blur in 1/256 of the longer edge, and a few of them in a sharp picture. A picture of
    less than 192 pixels along the longer edge, as `given`, counts as one of 192: it has not the pixels to be as sharp.
    """
    longest = max(gray.shape)
    # A blurred picture of 8 bits is a staircase: without this its steps would pass for slopes.
    levels = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), longest / 100)
    # A Scharr kernel adds up 32 steps of one level.
    slopes = cv2.magnitude(cv2.Scharr(levels, cv2.CV_32F, 1, 0), cv2.Scharr(levels, cv2.CV_32F, 0, 1)) / 32
    around = np.ones((_NEIGHBOURHOOD, _NEIGHBOURHOOD), np.uint8)
    edge = max(1, longest // _CELLS)
    highest, lowest, steepest = (
        np.asarray(cv2.dilate(_pooled(np.asarray(values, np.float32), edge), around), np.float32)
        for values in (levels, -levels, slopes)
    )
    contrast = highest + lowest
    telling = contrast >= max(_FLAT, 0.5 * float(contrast.max()))
    if not telling.any():
        return 0.0
    widths = contrast[telling] / np.maximum(steepest[telling], 0.1)
    return float(np.percentile(widths, 5)) * _EDGE / longest * min(1.0, given / _LEAST_EDGE)


def _pooled(values: Levels, edge: int) -> Levels:
    """The greatest of the values in each cell of `edge` x `edge` pixels; cells that stick out are filled up."""
    height, width = values.shape
    padded = np.pad(values, ((0, -height % edge), (0, -width % edge)), mode="edge")
    rows, columns = padded.shape
    return np.asarray(padded.reshape(rows // edge, edge, columns // edge, edge).max(axis=(1, 3)), np.float32)


def _level(levels: Gray, share: float) -> float:
    """The level that `share` of the values do not exceed."""
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel().cumsum()
    return float(np.searchsorted(counts, share * levels.size))


def _blocking(gray: Gray, scale: int) -> float:
    # Enlarging leaves a grid of its own, `scale` pixels wide: the neighbours to compare with are of that grid too.
    apart = scale if scale < _BLOCK else 1
    height, width = (size - size % _BLOCK for size in gray.shape)
    if min(height, width) < 2 * _BLOCK:
        return 1.0
    levels = gray[:height, :width].astype(np.int16)
    ratios = []
    for steps in (np.abs(np.diff(levels, axis=1)).mean(axis=0), np.abs(np.diff(levels, axis=0)).mean(axis=1)):
        on_grid = steps[_BLOCK - 1 :: _BLOCK]
        before, behind = steps[_BLOCK - 1 - apart :: _BLOCK][: len(on_grid)], steps[_BLOCK - 1 + apart :: _BLOCK]
        beside = np.concatenate([before, behind])
        # Medians: the edge of a thing in the picture may lie on the grid, but not on every line of it.
        ratios.append((np.median(on_grid) + 0.25) / (np.median(beside) + 0.25))
    return float(np.mean(ratios))
