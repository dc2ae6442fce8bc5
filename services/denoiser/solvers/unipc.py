"""UniPC of order 2 with B(h) = e^h - 1 ("bh2"), predicting x_0 (Zhao et al., arXiv:2302.04867, algorithms 5 to 8).

Equal to Wan's `fm_solvers_unipc.py` and to diffusers' `UniPCMultistepScheduler` for flow prediction: the corrector is
on at every step but the first, and the last step is of first order.
"""

import math
from collections.abc import Sequence

import torch

from services.denoiser.solvers.log_snr import log_snr
from services.denoiser.solvers.state import SolverState

ORDER = 2


def step(state: SolverState, v: torch.Tensor, sigmas: Sequence[float]) -> SolverState:
    """Correct x_i with the new prediction of x_0, then predict x_{i+1} from the corrected sample."""
    i = state.step
    m_t = state.x - sigmas[i] * v
    x = state.x if state.x_last is None else _correct(state, state.x_last, m_t, sigmas)
    denoised = (*state.denoised[-1:], m_t)
    order = min(ORDER, len(sigmas) - 1 - i, state.order + 1)
    return SolverState(step=i + 1, x=_predict(x, denoised, order, i, sigmas), x_last=x, denoised=denoised, order=order)


def _predict(
    x: torch.Tensor, denoised: tuple[torch.Tensor, ...], order: int, i: int, sigmas: Sequence[float]
) -> torch.Tensor:
    """UniP: x_{i+1} = (sigma_{i+1} / sigma_i) x - alpha_{i+1} (e^{-h} - 1) (m_0 + D_1 / 2)."""
    s, t = sigmas[i], sigmas[i + 1]
    m0 = denoised[-1]
    h = log_snr(t) - log_snr(s)
    b = (1 - t) * math.expm1(-h)
    if order == 1:
        return (t / s) * x - b * m0
    r1 = (log_snr(sigmas[i - 1]) - log_snr(s)) / h
    return (t / s) * x - b * torch.lerp(m0, denoised[-2], 0.5 / r1)


def _correct(state: SolverState, x_last: torch.Tensor, m_t: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """UniC: the step that made x_i again, with x_0 as predicted at x_i beside the earlier predictions.

    x_i = (sigma_i / sigma_{i-1}) x_last - alpha_i (e^{-h} - 1) (m_0 + rho_1 D_1 + rho_2 (m_t - m_0)), where rho solves
    the order conditions R rho = b of the paper, in closed form for order 2.
    """
    i = state.step
    s, t = sigmas[i - 1], sigmas[i]
    m0 = state.denoised[-1]
    h = log_snr(t) - log_snr(s)
    b = (1 - t) * math.expm1(-h)
    if state.order == 1:
        return (t / s) * x_last - b * torch.lerp(m0, m_t, 0.5)
    r1 = (log_snr(sigmas[i - 2]) - log_snr(s)) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    b1 = phi_2 / phi_1
    b2 = 2 * (phi_2 / -h - 0.5) / phi_1
    rho_1 = (b2 - b1) / (r1 - 1)
    rho_2 = b1 - rho_1
    return (t / s) * x_last - b * (m0 + (rho_1 / r1) * (state.denoised[-2] - m0) + rho_2 * (m_t - m0))
