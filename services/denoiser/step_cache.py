"""First-block caching: a step whose first block does what it did last time takes the rest from last time.

The residual of the first block stands for how much a step differs from the last full one; where it has hardly changed,
the residual of all further blocks is taken from there (ParaAttention's first-block cache; TeaCache, arXiv:2411.19108).
The blocks of an expert never see a cache of the other, nor of the other prompt, and at every fifth step and at the
boundary all is computed anew: there, and only there, a run may be cut, so that what continues it computes the same.
"""

from typing import Final

import torch

from services.denoiser.experts import Expert
from services.denoiser.plan import Plan

REFRESH_STEPS: Final = 5
DEFAULT_THRESHOLD: Final = 0.08


class FirstBlockCache:
    """What one expert keeps of its last full evaluation of one group of prompts."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._first: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None
        self.answered = False

    def rest(self, first: torch.Tensor) -> torch.Tensor | None:
        """The residual of all blocks after the first, if `first`, that of the first block, has hardly changed."""
        self.answered = False
        if self._first is None or self._rest is None:
            return None
        change = (first - self._first).abs().mean() / self._first.abs().mean()
        # A change that is not a number is no small one.
        self.answered = bool(change < self._threshold)
        return self._rest if self.answered else None

    def keep(self, first: torch.Tensor, rest: torch.Tensor) -> None:
        """Remember a full evaluation."""
        self._first, self._rest = first, rest


class StepCache:
    """The caches of one run, and the steps that they answered."""

    def __init__(self, plan: Plan, threshold: float) -> None:
        self._threshold = threshold
        timesteps = plan.schedule.timesteps
        self._fresh = frozenset(timesteps[step] for step in range(plan.schedule.steps) if may_be_cut(plan, step))
        self._caches: dict[tuple[Expert, int, int], FirstBlockCache] = {}
        self._answered: set[float] = set()

    def begin(self, timestep: float) -> None:
        """A step begins: forget everything where the run may be cut."""
        if timestep in self._fresh:
            self._caches.clear()

    def of(self, expert: Expert, group: int, prompts: int) -> FirstBlockCache:
        """The cache of a group of so many prompts."""
        return self._caches.setdefault((expert, group, prompts), FirstBlockCache(self._threshold))

    def note(self, timestep: float) -> None:
        """Note that every evaluation of the step was answered from a cache."""
        self._answered.add(timestep)

    def has_answered(self, timestep: float) -> bool:
        """Whether the step was answered from the cache."""
        return timestep in self._answered


def may_be_cut(plan: Plan, step: int) -> bool:
    """Whether the state before `step` is complete: with a step cache only where the cache is empty."""
    if plan.settings.step_cache_threshold is None or step == plan.schedule.steps:
        return True
    return step % REFRESH_STEPS == 0 or step == plan.boundary_step
