"""What a solver knows between two steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverState:
    """Everything that the remaining steps depend on, besides the schedule and the velocity.

    `step` is the index of the next step and `x` the sample before it, [1, C, T, H, W] float32. `x_last` is UniPC's
    corrected sample from which `x` was predicted; without it the corrector would be skipped. `denoised` are the last
    predictions of x_0, newest last. `order` is the order of the step that made `x`, 0 before the first.
    """

    step: int
    x: torch.Tensor
    x_last: torch.Tensor | None = None
    denoised: tuple[torch.Tensor, ...] = ()
    order: int = 0

    @classmethod
    def start(cls, noise: torch.Tensor) -> "SolverState":
        """The state before the first step."""
        return cls(step=0, x=noise)

    def to(self, device: torch.device) -> "SolverState":
        """The same state on `device`."""
        return replace(
            self,
            x=self.x.to(device),
            x_last=None if self.x_last is None else self.x_last.to(device),
            denoised=tuple(tensor.to(device) for tensor in self.denoised),
        )


SolverStep: TypeAlias = Callable[[SolverState, torch.Tensor, Sequence[float]], SolverState]
"""(state, v, sigmas) -> the state after one step, where v = v(state.x, sigmas[state.step])."""
