"""Solvers against diffusers' schedulers, against closed forms, and cut at every step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.denoiser.sampler import Step, denoise
from services.denoiser.schedule import Schedule, SigmaRule, Solver, make_schedule
from services.denoiser.solvers import SolverState, history_length, solver_step
from tests.denoiser.test_schedule import diffusers_scheduler

SHAPE = (1, 4, 3, 6, 6)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def curved(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A velocity field with no solution in closed form."""
    mixing = torch.linspace(-0.4, 0.4, 16).view(4, 4)
    return torch.einsum("ij,bjthw->bithw", mixing, x) * (1 + timestep / 1000) + torch.tanh(1.3 * x)


def run(solver: Solver, schedule: Schedule, state: SolverState, end: int) -> list[Step]:
    return list(denoise(curved, schedule, solver_step(solver), state, end))


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_a_run_equals_diffusers(solver: Solver, steps: int, shift: float) -> None:
    scheduler = diffusers_scheduler(solver, steps, shift)
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(curved(x, float(timestep)), timestep, x, return_dict=False)[0]
    schedule = make_schedule(solver, SigmaRule.DIFFUSERS, steps, shift)
    ours = run(solver, schedule, SolverState.start(noise()), steps)[-1].state.x
    assert torch.linalg.norm(ours - x) <= 5e-6 * torch.linalg.norm(x)


@settings(max_examples=60)
@given(
    solver=st.sampled_from(Solver),
    steps=st.integers(1, 60),
    shift=st.floats(0.5, 20.0),
    seed=st.integers(0, 2**31),
    cut=st.floats(0, 1),
)
def test_a_run_of_any_length_and_shift_equals_diffusers_and_may_be_cut_anywhere(
    solver: Solver, steps: int, shift: float, seed: int, cut: float
) -> None:
    scheduler = diffusers_scheduler(solver, steps, shift)
    x = noise(seed)
    for timestep in scheduler.timesteps:
        x = scheduler.step(curved(x, float(timestep)), timestep, x, return_dict=False)[0]
    schedule = make_schedule(solver, SigmaRule.DIFFUSERS, steps, shift)
    whole = run(solver, schedule, SolverState.start(noise(seed)), steps)
    assert torch.linalg.norm(whole[-1].state.x - x) <= 2e-5 * torch.linalg.norm(x)
    between = whole[round(cut * (steps - 1))].state
    rest = run(solver, schedule, between, steps)
    assert torch.equal((rest[-1].state if rest else between).x, whole[-1].state.x)


@pytest.mark.parametrize("rule", SigmaRule)
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_the_exact_velocity_lands_on_the_clean_sample_in_any_number_of_steps(
    solver: Solver, rule: SigmaRule, steps: int
) -> None:
    x0, eps = noise(1), noise(2)
    schedule = make_schedule(solver, rule, steps, 5.0)
    sigma = schedule.sigmas[0]
    start = SolverState.start((1 - sigma) * x0 + sigma * eps)
    last = list(denoise(lambda _x, _t: eps - x0, schedule, solver_step(solver), start, steps))[-1]
    assert torch.allclose(last.state.x, x0, atol=2e-5)
    assert torch.allclose(last.x0(), x0, atol=2e-5)


@pytest.mark.parametrize(("solver", "order"), [(Solver.EULER, 1), (Solver.DPMPP_2M, 2), (Solver.UNIPC, 2)])
def test_halving_the_steps_shows_the_order_of_the_solver(solver: Solver, order: int) -> None:
    # dx/dsigma = x has the solution x e^(sigma - 1); between 0.9 and 0.1 no end of the schedule disturbs the order.
    def error(steps: int) -> float:
        sigmas = tuple(0.9 - 0.8 * i / steps for i in range(steps + 1))
        schedule = Schedule(sigmas=(*sigmas, 0.0), timesteps=tuple(1000 * sigma for sigma in sigmas))
        state = SolverState.start(torch.ones(SHAPE, dtype=torch.float64))
        last = list(denoise(lambda x, _t: x, schedule, solver_step(solver), state, steps))[-1]
        return abs(last.state.x.flatten()[0].item() - math.exp(-0.8))

    assert error(40) < error(20) / 2**order * 1.35


@pytest.mark.parametrize("solver", Solver)
def test_a_run_that_is_cut_at_any_step_continues_bit_for_bit(solver: Solver) -> None:
    steps = 7
    schedule = make_schedule(solver, SigmaRule.WAN, steps, 3.0)
    whole = run(solver, schedule, SolverState.start(noise()), steps)
    for cut in range(1, steps):
        first = run(solver, schedule, SolverState.start(noise()), cut)[-1].state
        rest = run(solver, schedule, first, steps)
        assert [step.index for step in rest] == list(range(cut, steps))
        assert torch.equal(rest[-1].state.x, whole[-1].state.x)


@pytest.mark.parametrize("solver", Solver)
def test_a_state_holds_exactly_the_history_that_it_says(solver: Solver) -> None:
    schedule = make_schedule(solver, SigmaRule.WAN, 5, 3.0)
    for step in run(solver, schedule, SolverState.start(noise()), 5):
        assert len(step.state.denoised) == history_length(solver, step.state.step)


def test_unipc_without_its_last_sample_would_skip_the_corrector() -> None:
    schedule = make_schedule(Solver.UNIPC, SigmaRule.WAN, 6, 3.0)
    whole = run(Solver.UNIPC, schedule, SolverState.start(noise()), 6)
    state = whole[2].state
    forgetful = SolverState(step=state.step, x=state.x, denoised=state.denoised, order=state.order)
    assert not torch.equal(run(Solver.UNIPC, schedule, forgetful, 6)[-1].state.x, whole[-1].state.x)


@pytest.mark.parametrize("solver", Solver)
def test_a_step_leaves_the_state_that_it_started_from_unchanged(solver: Solver) -> None:
    schedule = make_schedule(solver, SigmaRule.WAN, 6, 3.0)
    states = [step.state for step in run(solver, schedule, SolverState.start(noise()), 3)]
    before = [state.x.clone() for state in states]
    run(solver, schedule, states[-1], 6)
    assert all(torch.equal(state.x, copy) for state, copy in zip(states, before, strict=True))
