"""A solver state as tensors and text."""

import pytest
import torch

from services.denoiser.checkpoint import StateMismatch, read_state, state_metadata, state_tensors
from services.denoiser.guidance import Guidance
from services.denoiser.plan import Plan, fingerprint
from services.denoiser.sampler import denoise, prior
from services.denoiser.schedule import SigmaRule, Solver
from services.denoiser.settings import Settings
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState, solver_step

SHAPE = VideoShape(width=32, height=32, frames=5)


def plan(solver: Solver, first_step: int = 0, shift: float = 3.0) -> Plan:
    settings = Settings(
        solver=solver,
        sigma_rule=SigmaRule.WAN,
        steps=6,
        flow_shift=shift,
        boundary_ratio=0.875,
        guidance=Guidance(high=4.0, low=3.0),
    )
    schedule, latents = settings.schedule(), SHAPE.latents(16)
    return Plan(
        shape=SHAPE,
        latents=latents,
        settings=settings,
        schedule=schedule,
        seed=0,
        first_step=first_step,
        end_step=6,
        fingerprint=fingerprint("model", "float32", settings, schedule, latents),
    )


def state_after(solver: Solver, steps: int) -> SolverState:
    each = plan(solver)
    start = SolverState.start(prior(each.latents, 0))
    done = list(denoise(lambda x, _t: torch.tanh(x), each.schedule, solver_step(solver), start, steps))
    return done[-1].state


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_state_comes_back_as_it_was(solver: Solver, step: int) -> None:
    state = state_after(solver, step)
    back = read_state(state_tensors(state), state_metadata(state, plan(solver)), plan(solver, step))
    assert (back.step, back.order) == (state.step, state.order)
    assert torch.equal(back.x, state.x)
    assert (back.x_last is None) == (state.x_last is None)
    assert len(back.denoised) == len(state.denoised)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(back.denoised, state.denoised, strict=True))


@pytest.mark.parametrize(
    "change", [{"schema_version": "2"}, {"fingerprint": "0" * 32}, {"next_step": "3"}, {"next_step": "x"}]
)
def test_another_version_run_or_step_does_not_fit(change: dict[str, str]) -> None:
    state = state_after(Solver.UNIPC, 4)
    metadata = {**state_metadata(state, plan(Solver.UNIPC)), **change}
    with pytest.raises(StateMismatch):
        read_state(state_tensors(state), metadata, plan(Solver.UNIPC, 4))


@pytest.mark.parametrize("name", ["x", "x_last", "denoised.0", "denoised.1"])
def test_an_incomplete_state_is_refused(name: str) -> None:
    state = state_after(Solver.UNIPC, 4)
    tensors = state_tensors(state)
    del tensors[name]
    with pytest.raises(ValueError, match="has denoised"):
        read_state(tensors, state_metadata(state, plan(Solver.UNIPC)), plan(Solver.UNIPC, 4))


@pytest.mark.parametrize("name", ["x", "x_last", "denoised.0", "denoised.1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_refused(name: str, value: float) -> None:
    state = state_after(Solver.UNIPC, 4)
    tensors = {key: tensor.clone() for key, tensor in state_tensors(state).items()}
    tensors[name].flatten()[3] = value
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        read_state(tensors, state_metadata(state, plan(Solver.UNIPC)), plan(Solver.UNIPC, 4))


@pytest.mark.parametrize("order", ["0", "3", "", "one"])
def test_an_impossible_order_is_refused(order: str) -> None:
    state = state_after(Solver.UNIPC, 4)
    metadata = {**state_metadata(state, plan(Solver.UNIPC)), "order": order}
    with pytest.raises(ValueError, match="order"):
        read_state(state_tensors(state), metadata, plan(Solver.UNIPC, 4))


def test_the_fingerprint_covers_what_shapes_the_latents_and_nothing_else() -> None:
    base = plan(Solver.UNIPC)
    assert plan(Solver.UNIPC, first_step=3).fingerprint == base.fingerprint
    assert plan(Solver.UNIPC, shift=5.0).fingerprint != base.fingerprint
    assert plan(Solver.EULER).fingerprint != base.fingerprint
    args = (base.settings, base.schedule, base.latents)
    assert fingerprint("another", "float32", *args) != base.fingerprint
    assert fingerprint("model", "bfloat16", *args) != base.fingerprint
