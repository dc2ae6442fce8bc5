"""Noise levels of a run: unshifted levels by rule, the flow shift, and the timesteps that the experts are told.

Flow matching (Lipman et al., arXiv:2210.02747; Esser et al., arXiv:2403.03206): x_sigma = (1 - sigma) x_0 + sigma eps
with velocity v = eps - x_0. The shift is Esser et al., eq. 23: sigma' = s sigma / (1 + (s - 1) sigma).
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

TRAIN_TIMESTEPS = 1000


class SigmaRule(enum.StrEnum):
    """Whose spacing of the unshifted noise levels is used."""

    WAN = "wan"
    DIFFUSERS = "diffusers"


class Solver(enum.StrEnum):
    """The numerical method; each has a spacing of its own under either rule."""

    UNIPC = "unipc"
    EULER = "euler"
    DPMPP_2M = "dpmpp_2m"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """`sigmas`: steps + 1 levels, strictly falling to 0, rounded to float32 as both references keep them.

    `timesteps`: one a step, in 0 to 1000; whole numbers where the rule truncates them.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of solver steps."""
        return len(self.timesteps)


def make_schedule(solver: Solver, rule: SigmaRule, steps: int, shift: float) -> Schedule:
    """The schedule of `steps` steps at flow shift `shift`.

    Distilled few-step models use Euler under Wan's rule: 4 steps at shift 5 give 1.0, 0.9375, 0.8333, 0.625.
    Raises `ValueError` for fewer than 1 step or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if not shift > 0:
        raise ValueError(f"flow_shift must be positive, not {shift}")
    levels = [shifted(level, shift) for level in _unshifted(solver, rule, steps, shift)]
    if solver is Solver.UNIPC and rule is SigmaRule.DIFFUSERS and abs(levels[0] - 1) < 1e-6:
        # diffusers keeps lambda = log((1 - sigma) / sigma) finite at the first level.
        levels[0] -= 1e-6
    sigmas = [_float32(level) for level in levels]
    if solver is Solver.EULER and rule is SigmaRule.DIFFUSERS:
        timesteps = [_float32(sigma * TRAIN_TIMESTEPS) for sigma in sigmas]
    else:
        timesteps = [float(int(level * TRAIN_TIMESTEPS)) for level in levels]
    return Schedule(sigmas=(*sigmas, 0.0), timesteps=tuple(timesteps))


def shifted(sigma: float, shift: float) -> float:
    """sigma' = s sigma / (1 + (s - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _unshifted(solver: Solver, rule: SigmaRule, steps: int, shift: float) -> Sequence[float]:
    """Unshifted levels, highest first, without the final 0.

    Wan: `fm_solvers_unipc.py` begins at its float32 sigma_max of 0.999, `fm_solvers.py:get_sampling_sigmas` at 1.
    diffusers: UniPC ends near 0.001, DPM++ begins at 0.999, Euler runs between its already shifted ends.
    """
    if rule is SigmaRule.WAN:
        highest = _float32(0.999) if solver is Solver.UNIPC else 1.0
        return _evenly(highest, 0.0, steps)[:-1]
    if solver is Solver.UNIPC:
        return _evenly(1.0, 1 / TRAIN_TIMESTEPS, steps)[:-1]
    if solver is Solver.DPMPP_2M:
        return [1.0 - alpha for alpha in reversed(_evenly(1.0, 1 / TRAIN_TIMESTEPS, steps)[1:])]
    lowest = _float32(shifted(1 / TRAIN_TIMESTEPS, shift))
    return _evenly(1.0, lowest, steps - 1) if steps > 1 else [1.0]


def _evenly(start: float, stop: float, intervals: int) -> list[float]:
    """`intervals` + 1 numbers, computed in numpy's order of operations, since timesteps are truncated afterwards."""
    width = (stop - start) / intervals
    return [*(start + i * width for i in range(intervals)), stop]


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
