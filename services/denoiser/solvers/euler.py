"""Euler's method: one velocity a step, no history."""

from collections.abc import Sequence

import torch

from services.denoiser.solvers.state import SolverState


def step(state: SolverState, v: torch.Tensor, sigmas: Sequence[float]) -> SolverState:
    """x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v."""
    i = state.step
    return SolverState(step=i + 1, x=state.x + (sigmas[i + 1] - sigmas[i]) * v, order=1)
