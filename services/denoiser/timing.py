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
            step = next(steps, None)
            if step is None:
                return
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield TimedStep(step=step, began=began, seconds=time.monotonic() - began)
    finally:
        steps.close()
