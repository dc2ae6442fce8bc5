"""Noise levels: Wan's own formulas, and diffusers' schedulers."""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from services.denoiser.experts import Expert, boundary_step, expert_at
from services.denoiser.schedule import SigmaRule, Solver, make_schedule

CASES = [(steps, shift) for steps in (1, 2, 3, *range(4, 51)) for shift in (1.0, 3.0, 5.0, 8.0, 12.0)]


def diffusers_scheduler(solver: Solver, steps: int, shift: float) -> Any:
    """The library's scheduler with its sigmas set."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    make = {
        Solver.UNIPC: lambda: UniPCMultistepScheduler(**flow),
        Solver.EULER: lambda: FlowMatchEulerDiscreteScheduler(shift=shift),
        Solver.DPMPP_2M: lambda: DPMSolverMultistepScheduler(**flow, algorithm_type="dpmsolver++", solver_order=2),
    }[solver]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler: Any = make()
        scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("solver", Solver)
def test_the_diffusers_rule_equals_diffusers(solver: Solver) -> None:
    for steps, shift in CASES:
        theirs = diffusers_scheduler(solver, steps, shift)
        ours = make_schedule(solver, SigmaRule.DIFFUSERS, steps, shift)
        case = f"{steps} steps, shift {shift}"
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), atol=1e-6, err_msg=case)
        np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), atol=1e-3, err_msg=case)


def test_wans_unipc_rule_equals_its_formula() -> None:
    # Wan-Video/Wan2.2 fm_solvers_unipc.py: the scheduler is built with shift 1 and told the shift by set_timesteps.
    sigma_max = np.float32(1.0 - np.linspace(1, 1 / 1000, 1000)[-1])
    for steps, shift in CASES:
        sigmas = np.linspace(float(sigma_max), 0.0, steps + 1)[:-1]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        ours, case = make_schedule(Solver.UNIPC, SigmaRule.WAN, steps, shift), f"{steps} steps, shift {shift}"
        np.testing.assert_array_equal(np.float32(ours.sigmas), np.float32([*sigmas, 0]), err_msg=case)
        np.testing.assert_array_equal(ours.timesteps, (sigmas * 1000).astype(np.int64), err_msg=case)


@pytest.mark.parametrize("solver", [Solver.DPMPP_2M, Solver.EULER])
def test_wans_other_rule_equals_get_sampling_sigmas(solver: Solver) -> None:
    for steps, shift in CASES:
        sigmas = np.linspace(1, 0, steps + 1)[:steps]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        ours, case = make_schedule(solver, SigmaRule.WAN, steps, shift), f"{steps} steps, shift {shift}"
        np.testing.assert_array_equal(np.float32(ours.sigmas), np.float32([*sigmas, 0]), err_msg=case)
        np.testing.assert_array_equal(ours.timesteps, (sigmas * 1000).astype(np.int64), err_msg=case)


def test_the_distilled_schedule_is_euler_at_four_steps_and_shift_five() -> None:
    schedule = make_schedule(Solver.EULER, SigmaRule.WAN, 4, 5.0)
    assert schedule.sigmas == pytest.approx((1.0, 0.9375, 0.833333, 0.625, 0.0), abs=1e-6)
    assert schedule.timesteps == (1000, 937, 833, 625)
    assert boundary_step(schedule.timesteps, 0.875) == 2


@pytest.mark.parametrize(
    ("solver", "rule", "shift", "high", "first_low"),
    [
        (Solver.UNIPC, SigmaRule.WAN, 12.0, 26, 865),
        (Solver.DPMPP_2M, SigmaRule.WAN, 12.0, 26, 865),
        (Solver.UNIPC, SigmaRule.DIFFUSERS, 12.0, 26, 866),
        (Solver.UNIPC, SigmaRule.DIFFUSERS, 3.0, 13, 861),
        (Solver.UNIPC, SigmaRule.WAN, 5.0, 17, 870),
    ],
)
def test_forty_steps_split_as_in_the_reference(
    solver: Solver, rule: SigmaRule, shift: float, high: int, first_low: int
) -> None:
    schedule = make_schedule(solver, rule, 40, shift)
    assert boundary_step(schedule.timesteps, 0.875) == high
    assert schedule.timesteps[high] == first_low


@pytest.mark.parametrize("rule", SigmaRule)
@pytest.mark.parametrize("solver", Solver)
def test_sigmas_fall_strictly_to_zero(solver: Solver, rule: SigmaRule) -> None:
    sigmas = make_schedule(solver, rule, 40, 12.0).sigmas
    assert all(high > low for high, low in pairwise(sigmas))
    assert 0.99 < sigmas[0] <= 1
    assert sigmas[-1] == 0


def test_a_timestep_at_the_boundary_is_high_noise() -> None:
    assert expert_at(875, 0.875) is Expert.HIGH
    assert expert_at(874.999, 0.875) is Expert.LOW
    assert expert_at(0, 0.0) is Expert.HIGH


def test_without_low_noise_steps_the_boundary_is_the_end() -> None:
    assert boundary_step((999, 900, 880), 0.875) == 3


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (4, 0.0), (4, -1.0), (4, float("nan"))])
def test_an_impossible_schedule_is_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"steps|flow_shift"):
        make_schedule(Solver.UNIPC, SigmaRule.WAN, steps, shift)
