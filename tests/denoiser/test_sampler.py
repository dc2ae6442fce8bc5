"""The loop itself, its prior, and guidance."""

import pytest
import torch

from services.denoiser.experts import Expert
from services.denoiser.guidance import Guidance, guide
from services.denoiser.sampler import denoise, prior
from services.denoiser.schedule import SigmaRule, Solver, make_schedule
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState, solver_step

LATENTS = VideoShape(width=64, height=48, frames=5).latents(16)


def test_the_prior_is_torchs_cpu_generator_with_the_seed() -> None:
    expected = torch.randn((1, 16, 2, 6, 8), generator=torch.Generator("cpu").manual_seed(123), dtype=torch.float32)
    assert torch.equal(prior(LATENTS, 123), expected)
    assert not torch.equal(prior(LATENTS, 124), expected)


def test_the_prior_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    prior(LATENTS, 9)
    assert torch.equal(torch.randn(3), expected)


def test_the_velocity_is_asked_once_a_step_at_the_schedules_timesteps() -> None:
    asked: list[float] = []

    def velocity(x: torch.Tensor, timestep: float) -> torch.Tensor:
        asked.append(timestep)
        return x

    schedule = make_schedule(Solver.UNIPC, SigmaRule.WAN, 6, 3.0)
    steps = denoise(velocity, schedule, solver_step(Solver.UNIPC), SolverState.start(prior(LATENTS, 0)), 4)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert asked == list(schedule.timesteps[:4])


def test_closing_the_loop_stops_it_before_the_next_velocity() -> None:
    asked: list[float] = []

    def velocity(x: torch.Tensor, timestep: float) -> torch.Tensor:
        asked.append(timestep)
        return x

    schedule = make_schedule(Solver.EULER, SigmaRule.WAN, 6, 3.0)
    steps = denoise(velocity, schedule, solver_step(Solver.EULER), SolverState.start(prior(LATENTS, 0)), 6)
    next(steps)
    next(steps)
    steps.close()
    assert len(asked) == 2


def test_guidance_at_scale_one_is_the_positive_velocity() -> None:
    positive, negative = torch.randn(4), torch.randn(4)
    assert torch.allclose(guide(positive, negative, 1.0), positive)
    assert torch.allclose(guide(positive, negative, 0.0), negative)
    assert torch.allclose(guide(positive, negative, 4.0), negative + 4 * (positive - negative))


@pytest.mark.parametrize(("high", "low", "needed"), [(1, 1, False), (4, 1, True), (1, 3, True), (4, 3, True)])
def test_the_negative_prompt_is_needed_only_where_a_scale_differs_from_one(
    high: float, low: float, needed: bool
) -> None:
    guidance = Guidance(high=high, low=low)
    assert guidance.needs_negative is needed
    assert (guidance.scale(Expert.HIGH), guidance.scale(Expert.LOW)) == (high, low)
