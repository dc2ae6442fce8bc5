"""Which of the two experts serves which step.

Wan2.2 has a high-noise expert for timesteps at and above the boundary and a low-noise expert below it
(Wan-Video/Wan2.2 `wan/text2video.py:_prepare_model_for_timestep`).
"""

import enum
from collections.abc import Sequence

from services.denoiser.schedule import TRAIN_TIMESTEPS


class Expert(enum.StrEnum):
    """One denoising transformer; the value is its component in a diffusers folder."""

    HIGH = "transformer"
    LOW = "transformer_2"


def expert_at(timestep: float, boundary_ratio: float) -> Expert:
    """The expert for `timestep`: high-noise when t >= boundary_ratio * 1000."""
    return Expert.HIGH if timestep >= boundary_ratio * TRAIN_TIMESTEPS else Expert.LOW


def boundary_step(timesteps: Sequence[float], boundary_ratio: float) -> int:
    """Index of the first low-noise step; the number of steps if there is none."""
    for index, timestep in enumerate(timesteps):
        if expert_at(timestep, boundary_ratio) is Expert.LOW:
            return index
    return len(timesteps)
