"""A picture of one shape made into one of another."""

import enum

import cv2
import numpy as np

from services.postprocess.frames import Pixels


class Fit(enum.Enum):
    """Crop: cover the target and cut what sticks out. Pad: lie inside it on black. Stretch: scale both edges."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


def fitted(picture: Pixels, width: int, height: int, fit: Fit) -> Pixels:
    """`picture` [h, w, 3] as [`height`, `width`, 3]; centred where something is cut or filled."""
    had_height, had_width = picture.shape[:2]
    if (had_width, had_height) == (width, height):
        return picture
    if fit is Fit.STRETCH:
        return _scaled(picture, width, height)
    choose = max if fit is Fit.CROP else min
    scale = choose(width / had_width, height / had_height)
    scaled = _scaled(picture, max(1, round(had_width * scale)), max(1, round(had_height * scale)))
    if fit is Fit.CROP:
        top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
        return scaled[top : top + height, left : left + width]
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - scaled.shape[0]) // 2, (width - scaled.shape[1]) // 2
    canvas[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return canvas


def _scaled(picture: Pixels, width: int, height: int) -> Pixels:
    smaller = width < picture.shape[1] or height < picture.shape[0]
    kernel = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=kernel), np.uint8)
