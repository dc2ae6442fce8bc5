"""DPM-Solver++ 2M, midpoint, predicting x_0 (Lu et al., arXiv:2211.01095, algorithm 2)."""

import math
from collections.abc import Sequence

import torch

from services.denoiser.solvers.log_snr import log_snr
from services.denoiser.solvers.state import SolverState


def step(state: SolverState, v: torch.Tensor, sigmas: Sequence[float]) -> SolverState:
    """x_{i+1} = (sigma_{i+1} / sigma_i) x_i - alpha_{i+1} (e^{-h} - 1) D, D the midpoint extrapolation of x_0.

    The first step and the step to sigma = 0 are of first order: D = x_0.
    """
    i = state.step
    s, t = sigmas[i], sigmas[i + 1]
    m0 = state.x - s * v
    h = log_snr(t) - log_snr(s)
    second_order = bool(state.denoised) and t > 0
    d = m0
    if second_order:
        # r is infinite after a first level of exactly 1, where x_0 has no usable predecessor.
        r = (log_snr(s) - log_snr(sigmas[i - 1])) / h
        d = m0 + (m0 - state.denoised[-1]) * (0.5 / r)
    x = (t / s) * state.x - ((1 - t) * math.expm1(-h)) * d
    return SolverState(step=i + 1, x=x, denoised=(m0,), order=2 if second_order else 1)
