"""Whether both prompts are evaluated in one batch or one after the other: the same velocity, not the same bits.

A run decides at its first step and writes the choice into its solver state, which binds whoever continues it.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape
from services.denoiser.transformer import Transformer

Mode: TypeAlias = Literal["auto", "measure", "on", "off"]

BATCHED_TOKENS = 4096
"""Up to so many tokens `auto` uses one batch: larger clips fill the device alone."""
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of a guided evaluation of `tokens` tokens, either way."""

    tokens: int
    batched_seconds: float
    sequential_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceBatch:
    """The rule in force. `auto` depends on the clip alone, so that every process decides alike."""

    mode: Mode = "auto"
    measured: Measured | None = None

    def batched(self, tokens: int) -> bool:
        """Whether a run that begins here on so many tokens uses one batch.

        What was measured counts from its size on: down from it where one batch won, up from it where it lost.
        """
        if self.mode in ("on", "off"):
            return self.mode == "on"
        if self.measured is not None:
            won = self.measured.batched_seconds <= self.measured.sequential_seconds
            if won and tokens <= self.measured.tokens:
                return True
            if not won and tokens >= self.measured.tokens:
                return False
        return tokens <= BATCHED_TOKENS


def measure(transformer: Transformer, latents: LatentShape, text_length: int) -> Measured:
    """Time one guided evaluation on `latents` either way, the best of some rounds in turn.

    Where memory does not suffice for both prompts at once, that takes for ever.
    """
    x = prior(latents, 0).to(transformer.device)
    text = torch.zeros(2, text_length, transformer.text_dim)
    both = transformer.read(text, latents)
    each = [transformer.read(one, latents) for one in text.split(1)]
    batched, sequential = math.inf, math.inf
    for _ in range(_ROUNDS):
        one_by_one = _seconds(lambda: [transformer(x, 500.0, one) for one in each], transformer.device)
        sequential = min(sequential, one_by_one)
        with suppress(torch.OutOfMemoryError):
            batched = min(batched, _seconds(lambda: transformer(x, 500.0, both), transformer.device))
    return Measured(tokens=latents.tokens, batched_seconds=batched, sequential_seconds=sequential)


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    began = time.monotonic()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began
