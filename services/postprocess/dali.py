"""Scaling and toning by NVIDIA DALI, on the CPU or on a CUDA device."""

import threading
from typing import Any

import numpy as np
import torch

from services.postprocess.frames import Pixels
from services.postprocess.scaling import Tone


class DaliScaler:
    """DALI: Lanczos with a kernel of 6x6 where frames grow, a Gaussian where they shrink.

    Of DALI's filters the Gaussian is the nearest to an area average that does not ring. Every thread has pipelines of
    its own, which end with it: DALI's are not to be shared. A pipeline takes frames of any number and size.
    """

    name = "dali"

    def __init__(self, device: torch.device) -> None:
        """Raises `ImportError` where DALI is not installed."""
        import nvidia.dali  # noqa: PLC0415, F401  (an optional dependency, loaded where it is used)

        self._device = device
        self._own = _Pipelines()

    def scaled(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """See `Scaler`."""
        if self._own.scaling is None:
            self._own.scaling = _scaling(self._device)
        return _run(self._own.scaling, pixels, size=np.array([height, width], np.float32))

    def toned(self, pixels: Pixels, tone: Tone) -> Pixels:
        """See `Scaler`."""
        if self._own.tone != tone:
            self._own.toning, self._own.tone = _toning(self._device, tone), tone
        return _run(self._own.toning, pixels)


class _Pipelines(threading.local):
    """What one thread has built: `toning` is for the latest `tone`, since a clip has one only."""

    scaling: Any = None
    toning: Any = None
    tone: Tone | None = None


def _scaling(device: torch.device) -> Any:
    from nvidia.dali import fn, types  # noqa: PLC0415

    pipeline = _pipeline(device)
    with pipeline:
        size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
        larger_or_smaller = fn.resize(
            _frames(device), size=size, mag_filter=types.INTERP_LANCZOS3, min_filter=types.INTERP_GAUSSIAN
        )
        pipeline.set_outputs(larger_or_smaller)
    pipeline.build()
    return pipeline


def _toning(device: torch.device, tone: Tone) -> Any:
    from nvidia.dali import fn, types  # noqa: PLC0415

    pipeline = _pipeline(device)
    with pipeline:
        lit = fn.lookup_table(
            _frames(device), keys=list(range(256)), values=[float(value) for value in tone.light], dtype=types.UINT8
        )
        if tone.saturation != 1:
            grey = fn.color_space_conversion(lit, image_type=types.RGB, output_type=types.GRAY)
            lit = fn.cast(lit * tone.saturation + grey * (1 - tone.saturation), dtype=types.UINT8)
        pipeline.set_outputs(lit)
    pipeline.build()
    return pipeline


def _pipeline(device: torch.device) -> Any:
    """An empty pipeline that makes one batch at a time, when it is asked: what is fed comes out of the next run."""
    from nvidia.dali import Pipeline  # noqa: PLC0415

    index = (device.index or 0) if device.type == "cuda" else None
    return Pipeline(batch_size=1, num_threads=1, device_id=index, prefetch_queue_depth=1)


def _frames(device: torch.device) -> Any:
    from nvidia.dali import fn, types  # noqa: PLC0415

    frames = fn.external_source(name="frames", layout="FHWC", dtype=types.UINT8, ndim=4)
    return frames.gpu() if device.type == "cuda" else frames


def _run(pipeline: Any, pixels: Pixels, **more: np.typing.NDArray[np.float32]) -> Pixels:
    pipeline.feed_input("frames", [np.ascontiguousarray(pixels)])
    for name, value in more.items():
        pipeline.feed_input(name, [value])
    (made,) = pipeline.run()
    # A copy: the pipeline writes over its output in the next run.
    return np.array(made.as_cpu().at(0))
