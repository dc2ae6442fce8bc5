"""Which scaler a process uses: the one that the configuration names, that the device suggests, or the fastest."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, Literal

import cv2
import numpy as np
import torch

from services.chassis.errors import FailedPrecondition
from services.chassis.logs import logger
from services.postprocess.frames import Pixels
from services.postprocess.scaling import OPENCV, Scaler, Tone

WantedScaler = Literal["auto", "measure", "opencv", "dali"]

AGREEMENT: Final = 2
"""Levels of 255 that a scaler may be from OpenCV at any pixel of a smooth picture; at hard edges kernels may differ."""

_PACKAGE: Final = "nvidia.dali"
_TONE: Final = Tone(light=bytes(range(255, -1, -1)), saturation=1.5)
_ROUNDS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalerChoice:
    """The scaler, and the seconds that each took to double 4 frames of 320x180; empty where nothing was measured."""

    scaler: Scaler
    seconds: Mapping[str, float]


def choose_scaler(wanted: WantedScaler, device: torch.device) -> ScalerChoice:
    """`auto` is OpenCV on the CPU, and on CUDA DALI where it works; `measure` is the fastest of those that do.

    `auto` does not measure: all processes of a suite on like machines must scale alike. DALI works if it is installed,
    opens on `device` and agrees with OpenCV. Raises `FailedPrecondition` where it is wanted and does not.
    """
    if wanted == "opencv" or (wanted == "auto" and device.type == "cpu"):
        return _unmeasured(OPENCV)
    try:
        dali = _open_dali(device)
    except FailedPrecondition as missing:
        if wanted == "dali":
            raise
        logger(__name__).warning("scaler_left_out", scaler="dali", why=str(missing))
        return _unmeasured(OPENCV)
    if wanted != "measure":
        return _unmeasured(dali)
    seconds = {scaler.name: min(_seconds(scaler) for _ in range(_ROUNDS)) for scaler in (OPENCV, dali)}
    fastest = min((OPENCV, dali), key=lambda scaler: seconds[scaler.name])
    return ScalerChoice(scaler=fastest, seconds=MappingProxyType(seconds))


def _open_dali(device: torch.device) -> Scaler:
    if find_spec("nvidia") is None or find_spec(_PACKAGE) is None:
        raise FailedPrecondition(
            "DALI is not installed here: pip install 'rushes[dali]', or set frame_scaler to opencv.",
            reason="SCALER_MISSING",
        )
    from services.postprocess.dali import DaliScaler  # noqa: PLC0415  (imports an optional dependency)

    try:
        dali = DaliScaler(device)
        worst = max(_distance(dali, edges) for edges in ((640, 360), (160, 90)))
    except (ImportError, RuntimeError) as broken:
        first_line = str(broken).partition("\n")[0]
        raise FailedPrecondition(f"DALI does not work on {device}: {first_line}", reason="SCALER_MISSING") from broken
    if worst > AGREEMENT:
        raise FailedPrecondition(
            f"DALI on {device} is {worst} levels from OpenCV; at most {AGREEMENT} are allowed.",
            reason="SCALER_DISAGREES",
        )
    return dali


def _distance(scaler: Scaler, size: tuple[int, int]) -> int:
    """Levels between `scaler` and OpenCV at the worst pixel of a smooth picture, scaled to `size` and toned."""
    pixels = _smooth_pictures(1)
    made, known = scaler.scaled(pixels, *size), OPENCV.scaled(pixels, *size)
    toned = np.abs(scaler.toned(known, _TONE).astype(int) - OPENCV.toned(known, _TONE)).max()
    return int(max(toned, np.abs(made.astype(int) - known).max()))


def _seconds(scaler: Scaler) -> float:
    pixels = _smooth_pictures(4)
    start = time.perf_counter()
    scaler.scaled(pixels, 640, 360)
    return time.perf_counter() - start


def _smooth_pictures(count: int) -> Pixels:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 9, 16, 3)).astype(np.uint8)
    return np.stack([cv2.resize(picture, (320, 180), interpolation=cv2.INTER_CUBIC) for picture in coarse])


def _unmeasured(scaler: Scaler) -> ScalerChoice:
    return ScalerChoice(scaler=scaler, seconds=MappingProxyType({}))
