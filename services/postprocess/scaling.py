"""Frames at another size and in other light and colour: what every scaler does, and the one that is always there."""

from dataclasses import dataclass
from typing import Final, Protocol

import cv2
import numpy as np

from services.postprocess.frames import Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Tone:
    """`light` is what each of the 256 values becomes; `saturation` is then the strength of the colours, 1 as it is."""

    light: bytes
    saturation: float


class Scaler(Protocol):
    """Scales and tones frames; safe to call from several threads, and the same for a frame whatever comes with it."""

    @property
    def name(self) -> str:
        """What it is called in the configuration and in descriptions."""
        ...

    def scaled(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """`pixels` [n, h, w, 3] as [n, `height`, `width`, 3]: Lanczos where they grow, averaged where they shrink."""
        ...

    def toned(self, pixels: Pixels, tone: Tone) -> Pixels:
        """`pixels` [n, h, w, 3] in the light and colour of `tone`."""
        ...


class OpenCvScaler:
    """OpenCV on the CPU: Lanczos with a kernel of 8x8, area averages where either edge becomes shorter."""

    name = "opencv"

    def scaled(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """See `Scaler`."""
        smaller = height < pixels.shape[1] or width < pixels.shape[2]
        kernel = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
        return np.stack([cv2.resize(picture, (width, height), interpolation=kernel) for picture in pixels])

    def toned(self, pixels: Pixels, tone: Tone) -> Pixels:
        """See `Scaler`."""
        light = np.frombuffer(tone.light, np.uint8)
        return np.stack([_toned(picture, light, tone.saturation) for picture in pixels])


def _toned(picture: Pixels, light: Pixels, saturation: float) -> Pixels:
    lit = np.asarray(cv2.LUT(picture, light), np.uint8)
    if saturation == 1:
        return lit
    grey = cv2.cvtColor(cv2.cvtColor(lit, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(lit, saturation, grey, 1 - saturation, 0), np.uint8)


OPENCV: Final = OpenCvScaler()
"""The scaler that is always there."""
