"""Stage `upscale`: larger pictures."""

from collections.abc import Iterator

import cv2
import numpy as np

from services.postprocess.frames import Frames

LANCZOS = "lanczos"
"""Id of the plain upscaler, which is always there."""


class LanczosUpscaler:
    """Enlarges by `factor` with an 8x8 Lanczos kernel; it holds nothing."""

    name = "upscale"

    def __init__(self, factor: int) -> None:
        self._factor = factor

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, `factor` times as wide and high."""
        size = (item.pixels.shape[2] * self._factor, item.pixels.shape[1] * self._factor)
        larger = [cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4) for picture in item.pixels]
        yield Frames(first=item.first, pixels=np.stack(larger))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()
