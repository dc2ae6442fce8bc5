"""Changes of light, colour and sharpness."""

from dataclasses import dataclass

import cv2
import numpy as np

from services.postprocess.frames import Pixels
from services.postprocess.scaling import OPENCV, Scaler, Tone

_UNSHARP_SIGMA = 1.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjustments:
    """Brightness -1 to 1; contrast, saturation and gamma around 1; sharpness from 0. The defaults change nothing."""

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    gamma: float = 1.0
    sharpness: float = 0.0


class Adjuster:
    """Makes the changes in the order light, colour, sharpness: the first two by the scaler, the last by OpenCV."""

    def __init__(self, adjustments: Adjustments, scaler: Scaler = OPENCV) -> None:
        self._tone = Tone(light=_light(adjustments), saturation=adjustments.saturation)
        self._sharpness = adjustments.sharpness
        self._scaler = scaler

    def adjusted(self, pixels: Pixels) -> Pixels:
        """`pixels` [n, h, w, 3], changed."""
        toned = self._scaler.toned(pixels, self._tone)
        return np.stack([_sharpened(picture, self._sharpness) for picture in toned]) if self._sharpness else toned


def _sharpened(picture: Pixels, sharpness: float) -> Pixels:
    soft = cv2.GaussianBlur(picture, (0, 0), _UNSHARP_SIGMA)
    return np.asarray(cv2.addWeighted(picture, 1 + sharpness, soft, -sharpness, 0), np.uint8)


def _light(wanted: Adjustments) -> bytes:
    """Gamma, then contrast around the middle, then brightness, for each of the 256 values."""
    light = (np.arange(256) / 255) ** (1 / wanted.gamma)
    light = (light - 0.5) * wanted.contrast + 0.5 + wanted.brightness
    return np.clip(np.rint(light * 255), 0, 255).astype(np.uint8).tobytes()
