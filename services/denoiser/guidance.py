"""Classifier-free guidance with one scale per expert (Ho and Salimans, arXiv:2207.12598, eq. 6)."""

from dataclasses import dataclass

import torch

from services.denoiser.experts import Expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Guidance scales w of the two experts; 1 means that the negative prompt is not evaluated."""

    high: float
    low: float

    def scale(self, expert: Expert) -> float:
        """The scale that `expert` is guided with."""
        return self.high if expert is Expert.HIGH else self.low

    @property
    def needs_negative(self) -> bool:
        """Whether any step evaluates the negative prompt."""
        return self.high != 1 or self.low != 1


def guide(v_positive: torch.Tensor, v_negative: torch.Tensor, w: float) -> torch.Tensor:
    """v = v_negative + w (v_positive - v_negative)."""
    return v_negative + w * (v_positive - v_negative)
