"""Changes of light, colour and sharpness."""

from dataclasses import dataclass

import cv2
import numpy as np

from services.postprocess.frames import Pixels

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
    """Makes the changes in the order light, colour, sharpness."""

    def __init__(self, adjustments: Adjustments) -> None:
        self._adjustments = adjustments
        self._table = _light_table(adjustments)

    def adjusted(self, picture: Pixels) -> Pixels:
        """`picture` [h, w, 3], changed."""
        wanted = self._adjustments
        changed = np.asarray(cv2.LUT(picture, self._table), np.uint8)
        if wanted.saturation != 1:
            grey = cv2.cvtColor(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            changed = np.asarray(cv2.addWeighted(changed, wanted.saturation, grey, 1 - wanted.saturation, 0), np.uint8)
        if wanted.sharpness:
            soft = cv2.GaussianBlur(changed, (0, 0), _UNSHARP_SIGMA)
            changed = np.asarray(cv2.addWeighted(changed, 1 + wanted.sharpness, soft, -wanted.sharpness, 0), np.uint8)
        return changed


def _light_table(wanted: Adjustments) -> Pixels:
    """Gamma, then contrast around the middle, then brightness, for each of the 256 values."""
    light = (np.arange(256) / 255) ** (1 / wanted.gamma)
    light = (light - 0.5) * wanted.contrast + 0.5 + wanted.brightness
    return np.clip(np.rint(light * 255), 0, 255).astype(np.uint8)
