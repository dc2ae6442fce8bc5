"""An invisible mark in every frame that carries a 64-bit id: stage `mark`."""

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np

from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark_basis import Matrix, analysed, reduced, synthesised
from services.postprocess.mark_carriers import STEPS, carriers
from services.postprocess.mark_code import payload
from services.postprocess.mark_trellis import protect

_BLOCK: Final = 16
_BUSY: Final = (5.0, 8.8)


class Marker:
    """Marks every frame with `mark_id`, 0 to 2^64 - 1; it holds nothing of the clip."""

    name = "mark"

    def __init__(self, mark_id: int) -> None:
        self._coded = protect(payload(mark_id))

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, marked."""
        yield Frames(first=item.first, pixels=np.stack([self._marked(picture) for picture in item.pixels]))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _marked(self, picture: Pixels) -> Pixels:
        luma = reduced(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32))
        change = carriers().change(analysed(luma), self._coded, _step(luma))
        spread = synthesised(change, *luma.shape)
        if luma.shape != picture.shape[:2]:
            size = (picture.shape[1], picture.shape[0])
            spread = np.asarray(cv2.resize(spread, size, interpolation=cv2.INTER_CUBIC), np.float32)
        return np.clip(np.rint(picture + spread[..., None]), 0, 255).astype(np.uint8)


def _step(luma: Matrix) -> float:
    """How far the points of the lattice lie apart: farther in a picture full of texture, which hides the mark.

    That is also where encoders save. Texture is the mean over blocks of the logarithm of their variance, by
    which x264 shares out its bits ("adaptive quantisation").
    """
    return STEPS[int(np.searchsorted(_BUSY, _busyness(luma)))]


def _busyness(luma: Matrix) -> float:
    size = (max(1, luma.shape[1] // _BLOCK), max(1, luma.shape[0] // _BLOCK))
    mean, square = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (luma, luma * luma))
    return float(np.log2(np.maximum(square - mean * mean, 0) + 1).mean())
