"""What one call of Denoise will do: the schedule, the range of steps, and the fingerprint that a state must match."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from services.denoiser.experts import Expert, boundary_step, expert_at
from services.denoiser.schedule import Schedule
from services.denoiser.settings import Settings
from services.denoiser.shapes import LatentShape, VideoShape

STATE_SCHEMA = 1
"""Version of the solver state's layout; a state of another version is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Steps `first_step` up to, without, `end_step` of `schedule`, on latents of shape `latents`.

    `batched`: both prompts are evaluated in one batch. `reused_steps`: steps that a remembered state stands for.
    """

    shape: VideoShape
    latents: LatentShape
    settings: Settings
    schedule: Schedule
    seed: int
    first_step: int
    end_step: int
    fingerprint: str
    batched: bool = False
    reused_steps: int = 0

    @property
    def boundary_step(self) -> int:
        """First step of the low-noise expert; the number of steps if there is none."""
        return boundary_step(self.schedule.timesteps, self.settings.boundary_ratio)

    def expert(self, step: int) -> Expert:
        """The expert that serves `step`."""
        return expert_at(self.schedule.timesteps[step], self.settings.boundary_ratio)

    @property
    def finishes(self) -> bool:
        """Whether the range ends with the schedule."""
        return self.end_step == self.schedule.steps


def fingerprint(  # noqa: PLR0917  (facts of one kind each)
    model: str,
    dtype: str,
    settings: Settings,
    schedule: Schedule,
    latents: LatentShape,
    adapters: Sequence[Sequence[str]] = (),
) -> str:
    """Names everything that shapes the latents besides seed and text: 32 hexadecimal digits.

    `model` is the fingerprint of the weights, `adapters` the names that `AdapterShelf.names` gives. Two runs of equal
    fingerprint may continue each other's states.
    """
    content = {
        "state_schema": STATE_SCHEMA,
        "model": model,
        "dtype": dtype,
        "settings": asdict(settings),
        "sigmas": schedule.sigmas,
        "timesteps": schedule.timesteps,
        "latents": asdict(latents),
        "adapters": adapters,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
