"""Pictures of one shape made into those of another."""

import enum

import numpy as np

from services.postprocess.frames import Pixels
from services.postprocess.scaling import OPENCV, Scaler


class Fit(enum.Enum):
    """Crop: cover the target and cut what sticks out. Pad: lie inside it on black. Stretch: scale both edges."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


def fitted(pixels: Pixels, width: int, height: int, fit: Fit, scaler: Scaler = OPENCV) -> Pixels:
    """`pixels` [n, h, w, 3] as [n, `height`, `width`, 3]; centred where something is cut or filled."""
    count, had_height, had_width, _ = pixels.shape
    if (had_width, had_height) == (width, height):
        return pixels
    if fit is Fit.STRETCH:
        return scaler.scaled(pixels, width, height)
    choose = max if fit is Fit.CROP else min
    scale = choose(width / had_width, height / had_height)
    scaled = scaler.scaled(pixels, max(1, round(had_width * scale)), max(1, round(had_height * scale)))
    if fit is Fit.CROP:
        top, left = (scaled.shape[1] - height) // 2, (scaled.shape[2] - width) // 2
        return scaled[:, top : top + height, left : left + width]
    canvas = np.zeros((count, height, width, 3), np.uint8)
    top, left = (height - scaled.shape[1]) // 2, (width - scaled.shape[2]) // 2
    canvas[:, top : top + scaled.shape[1], left : left + scaled.shape[2]] = scaled
    return canvas
