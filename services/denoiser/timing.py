"""Steps with the seconds that the device took for each."""

import time
from collections.abc import Generator
from dataclasses import dataclass

import torch

from services.denoiser.sampler import Step


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedStep:
    """A finished step, when it began (`time.monotonic`), and how long the device worked on it."""

    step: Step
    began: float
    seconds: float


def timed(steps: Generator[Step, None, None], device: torch.device) -> Generator[TimedStep, None, None]:
    """`steps`, each timed until the device has finished it and not only until its kernels are queued."""
    try:
        while True:
            began = time.monotonic()
            clock = _CudaClock(device) if device.type == "cuda" else None
            step = next(steps, None)
            if step is None:
                return
            seconds = time.monotonic() - began if clock is None else clock.seconds()
            yield TimedStep(step=step, began=began, seconds=seconds)
    finally:
        steps.close()


class _CudaClock:
    """Seconds that a CUDA device spends on what is queued from here on, by events in its own stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record(self._stream)

    def seconds(self) -> float:
        """Wait until the device is done."""
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1000
