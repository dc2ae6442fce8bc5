"""The denoising loop: a prior sample, and the generator that carries it down the noise levels."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

import torch

from services.denoiser.schedule import Schedule
from services.denoiser.shapes import LatentShape
from services.denoiser.solvers.state import SolverState, SolverStep

Velocity: TypeAlias = Callable[[torch.Tensor, float], torch.Tensor]
"""(x, timestep) -> v, both [1, C, T, H, W] float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One finished step: `state` follows it; `x`, `v` and `sigma` are what it started from."""

    state: SolverState
    x: torch.Tensor
    v: torch.Tensor
    sigma: float

    @property
    def index(self) -> int:
        """Index of the step that finished."""
        return self.state.step - 1

    def x0(self) -> torch.Tensor:
        """The predicted clean latents, x_0 = x - sigma v."""
        return self.x - self.sigma * self.v


def prior(shape: LatentShape, seed: int) -> torch.Tensor:
    """The initial noise, [1, C, T, H, W] float32 on the CPU: the same for a seed wherever it is drawn."""
    return torch.randn(shape.batch, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def denoise(
    velocity: Velocity, schedule: Schedule, solver_step: SolverStep, state: SolverState, end_step: int
) -> Generator[Step, None, None]:
    """Integrate dx/dsigma = v(x, sigma) from `state` up to, without, step `end_step`; yields after each step."""
    while state.step < end_step:
        x, sigma, timestep = state.x, schedule.sigmas[state.step], schedule.timesteps[state.step]
        v = velocity(x, timestep)
        state = solver_step(state, v, schedule.sigmas)
        yield Step(state=state, x=x, v=v, sigma=sigma)
