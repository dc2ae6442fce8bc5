"""An invisible mark in every frame that carries a 64-bit id: stage `mark`."""

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np

from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark_code import CANVAS, Canvas, Code, payload

_MOST_GAIN: Final = 2.2
_TEXTURED: Final = 40.0
_WINDOWS: Final = 64


class Marker:
    """Marks every frame with `mark_id`, 0 to 2^64 - 1; it holds nothing of the clip."""

    name = "mark"

    def __init__(self, mark_id: int) -> None:
        self._bits = payload(mark_id)
        self._code = Code()

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, marked."""
        yield Frames(first=item.first, pixels=np.stack([self._marked(picture) for picture in item.pixels]))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _marked(self, picture: Pixels) -> Pixels:
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        canvas = cv2.resize(luma, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
        change = self._code.change(np.asarray(canvas, np.float32), self._bits)
        size = (picture.shape[1], picture.shape[0])
        spread = cv2.resize(change, size, interpolation=cv2.INTER_CUBIC) * _gain(luma)
        return np.clip(np.rint(picture + spread[..., None]), 0, 255).astype(np.uint8)


def _gain(luma: Canvas) -> Canvas:
    """How much stronger the mark may be in each pixel: once over even ground, 2.2 times in texture, which hides it.

    Texture is what an encoder and a reader lose the mark in. Measured by the standard deviation around each pixel.
    """
    edge = max(3, luma.shape[1] // _WINDOWS)
    mean = cv2.blur(luma, (edge, edge))
    deviation = np.sqrt(np.maximum(cv2.blur(luma * luma, (edge, edge)) - mean * mean, 0))
    return np.asarray(1 + (_MOST_GAIN - 1) * np.minimum(deviation / _TEXTURED, 1), np.float32)
