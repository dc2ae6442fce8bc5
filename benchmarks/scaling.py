"""Frames scaled and coloured by DALI on the CPU against OpenCV: the time, and what either is worth in decibels."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import cv2
import numpy as np
import torch

from benchmarks.measurement import Figure, Report, interleave, ratio
from benchmarks.quality import psnr
from models.tiny.train.loop import generators
from models.tiny.train.upscaler import draw_frames, shrink
from services.postprocess.adjust import Adjuster, Adjustments
from services.postprocess.frames import Pixels
from services.postprocess.scaler_choice import choose_scaler
from services.postprocess.scaling import OPENCV, Scaler

_WIDTH: Final = 640
_HEIGHT: Final = 360
_FRAMES: Final = 16
_SIZES: Final = {"x2": (1280, 720), "x1.5": (960, 540), "to two thirds": (426, 240), "to a half": (320, 180)}
_COLOUR: Final = Adjustments(gamma=1.2, saturation=1.3)
_SEED: Final = 99
_CLIPS: Final = 6
_EDGE: Final = 192


async def measure(repeats: int = 15) -> Report:
    """The ratios on 16 frames of 640x360, one thread each, and both scalers' doubled pictures against the true ones."""
    cv2.setNumThreads(1)
    dali = choose_scaler("dali", torch.device("cpu")).scaler
    pixels = _pictures()
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    for case, work in _work(pixels).items():
        names = {scaler.name: f"{case}, {scaler.name}" for scaler in (dali, OPENCV)}
        taken = await interleave({names[scaler.name]: _in_turn(work, scaler) for scaler in (dali, OPENCV)}, repeats)
        samples |= taken
        figures.append(
            Figure(name=f"DALI's time of OpenCV's, {case}", value=ratio(taken, *names.values()), unit="ratio")
        )
    truth, small = await asyncio.to_thread(_clips)
    for scaler in (dali, OPENCV):
        doubled = psnr(scaler.scaled(small, _EDGE, _EDGE), truth)
        figures.append(Figure(name=f"doubled by {scaler.name}, against the true frames", value=doubled, unit="dB"))
    return Report(
        title=f"Scaling by DALI on the CPU: {_FRAMES} frames of {_WIDTH}x{_HEIGHT}, one thread",
        figures=tuple(figures),
        samples=samples,
    )


def _work(pixels: Pixels) -> dict[str, Callable[[Scaler], Pixels]]:
    work: dict[str, Callable[[Scaler], Pixels]] = {
        case: lambda scaler, size=size: scaler.scaled(pixels, *size) for case, size in _SIZES.items()
    }
    return {**work, "light and colour": lambda scaler: Adjuster(_COLOUR, scaler).adjusted(pixels)}


def _in_turn(work: Callable[[Scaler], Pixels], scaler: Scaler) -> Callable[[], Awaitable[object]]:
    async def once() -> Pixels:
        return work(scaler)

    return once


def _pictures() -> Pixels:
    coarse = np.random.default_rng(_SEED).integers(0, 256, (_FRAMES, 9, 16, 3)).astype(np.uint8)
    return np.stack([cv2.resize(frame, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC) for frame in coarse])


def _clips() -> tuple[Pixels, Pixels]:
    """Held-out frames of the embedded model's world, and the same at half the size."""
    drawn = [draw_frames(generators(_SEED, index)[0], size=_EDGE, held_out=True)[::8] for index in range(_CLIPS)]
    truth = np.concatenate(drawn)
    return truth, shrink(truth)
