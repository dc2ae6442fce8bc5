"""Classifier-free guidance with one scale per expert (Ho and Salimans, arXiv:2207.12598, eq. 6), in an interval.

Outside the interval the prompt alone is evaluated (Kynkäänniemi et al., arXiv:2404.07724).
"""

from dataclasses import dataclass

import torch

from services.denoiser.experts import Expert
from services.denoiser.schedule import TRAIN_TIMESTEPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Guidance scales w of the two experts; 1 means that the negative prompt is not evaluated.

    They hold at timesteps from `timestep_min` up to and including `timestep_max`.
    """

    high: float
    low: float
    timestep_min: float = 0.0
    timestep_max: float = float(TRAIN_TIMESTEPS)

    def scale(self, expert: Expert) -> float:
        """The scale that `expert` is guided with, where it is guided."""
        return self.high if expert is Expert.HIGH else self.low

    def scale_at(self, expert: Expert, timestep: float) -> float:
        """The scale of `expert` at `timestep`: 1 outside the interval."""
        return self.scale(expert) if self.timestep_min <= timestep <= self.timestep_max else 1.0

    @property
    def needs_negative(self) -> bool:
        """Whether any step may evaluate the negative prompt."""
        return self.high != 1 or self.low != 1


def guide(v_positive: torch.Tensor, v_negative: torch.Tensor, w: float) -> torch.Tensor:
    """v = v_negative + w (v_positive - v_negative)."""
    return v_negative + w * (v_positive - v_negative)
