"""Steps of several runs in one evaluation: within rounding of lone runs, and said so."""

import asyncio
from dataclasses import replace

import pytest
import torch

from rushes.v1 import sampling_pb2
from services.denoiser.conditioning import Conditioning
from services.denoiser.guidance import Guidance
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import VideoShape
from services.denoiser.sharing import Offer, StepSharing, Timing, evaluate_together
from services.denoiser.step_scheduler import Admitted, StepScheduler, Wish
from services.denoiser.velocity import GuidedVelocity
from tests.denoiser.caller import Caller, Outcome, conditioning
from tests.denoiser.conftest import Serve

SHAPE = VideoShape(width=64, height=64, frames=9)
# Enough steps that all runs have begun before the first has ended.
STEPS = {"steps": 16}


def velocity(pool: ExpertPool, seed: int, guidance: Guidance) -> GuidedVelocity:
    generator = torch.Generator().manual_seed(seed)
    return GuidedVelocity(
        experts=pool.experts,
        conditioning=Conditioning(
            positive=torch.randn(5, 32, generator=generator), negative=torch.randn(2, 32, generator=generator)
        ),
        text_length=pool.manifest.text.max_length,
        guidance=guidance,
        boundary_ratio=0.875,
        shape=SHAPE.latents(16),
        batched=True,
    )


@pytest.mark.parametrize("guidance", [Guidance(high=4.0, low=3.0), Guidance(high=1.0, low=1.0)])
def test_a_shared_evaluation_is_that_of_each_run_alone_within_rounding(pool: ExpertPool, guidance: Guidance) -> None:
    timesteps = (999.0, 931.0, 904.0)
    runs = [velocity(pool, seed, guidance) for seed in range(3)]
    xs = [prior(SHAPE.latents(16), seed) for seed in range(3)]
    alone = [run(x, t) for run, x, t in zip(runs, xs, timesteps, strict=True)]
    evaluate_together([Offer(velocity=run, x=x, timestep=t) for run, x, t in zip(runs, xs, timesteps, strict=True)])
    for run, x, t, expected in zip(runs, xs, timesteps, alone, strict=True):
        v = run(x, t)
        assert run.used is not None
        assert run.used.sharers == 3
        torch.testing.assert_close(v, expected, rtol=1e-4, atol=1e-4)


def test_a_velocity_that_was_foreseen_for_another_timestep_is_not_used(pool: ExpertPool) -> None:
    run, x = velocity(pool, 0, Guidance(high=4.0, low=3.0)), prior(SHAPE.latents(16), 0)
    expected = run(x, 904.0)
    evaluate_together([Offer(velocity=run, x=x, timestep=931.0)])
    assert run(x, 904.0).equal(expected)
    assert run.used is None


def seated(scheduler: StepScheduler, *kinds: object) -> list[int]:
    runs = []
    for kind in kinds:
        admission = scheduler.admit(0)
        assert isinstance(admission, Admitted)
        scheduler.begin(admission.run)
        scheduler.wants(admission.run, Wish(kind=kind))
        runs.append(admission.run)
    return runs


def test_runs_of_one_kind_take_a_step_together_up_to_the_limit() -> None:
    scheduler = StepScheduler(8, lambda _kind: 3)
    runs = seated(scheduler, "a", "a", "a", "a", "b", None, None)
    assert scheduler.sharers(runs[0], runs) == tuple(runs[:3])
    assert scheduler.sharers(runs[4], runs) == (runs[4],)
    assert scheduler.sharers(runs[5], runs) == (runs[5],)


def test_the_device_is_kept_for_a_run_of_the_kind_that_is_between_two_steps() -> None:
    scheduler = StepScheduler(8, lambda _kind: 2)
    one, two, other = seated(scheduler, "a", "a", "b")
    assert scheduler.sharers(one, {one, other}) is None
    assert scheduler.sharers(other, {one, other}) == (other,)
    scheduler.end(two)
    assert scheduler.sharers(one, {one, other}) == (one,)


def test_no_step_is_shared_where_it_does_not_pay() -> None:
    slow = Timing(shape=SHAPE, runs=2, serial_seconds=1.0, shared_seconds=0.99)
    fast = Timing(shape=SHAPE, runs=4, serial_seconds=2.0, shared_seconds=1.2)
    latents = SHAPE.latents(16)
    rule = StepSharing(mode="auto", limit=4, measured={latents: (slow, fast)})
    assert rule.most(latents) == 4
    assert replace(rule, measured={latents: (slow,)}).most(latents) == 1
    assert rule.most(replace(latents, frames=5)) == 1
    assert StepSharing().most(latents) == 1
    assert replace(rule, mode="on", limit=3).most(replace(latents, frames=5)) == 3


async def at_once(caller: Caller) -> list[Outcome]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(caller.denoise(text=conditioning(seed), seed=seed, sampling=STEPS)) for seed in range(3)
        ]
    return [task.result() for task in tasks]


async def test_runs_share_their_steps_where_the_operator_allows_it_and_nowhere_else(serve: Serve) -> None:
    async with serve(slots=3) as exact, serve(slots=3, step_sharing="on") as sharing:
        apart, together = await at_once(exact), await at_once(sharing)
        described = (await sharing.describe()).step_sharing
    assert (described.mode, described.limit) == ("on", 4)
    assert all(step.sharers == 1 for outcome in apart for step in outcome.steps)
    assert max(step.sharers for outcome in together for step in outcome.steps) > 1
    for alone, shared in zip(apart, together, strict=True):
        assert shared.result is not None
        assert shared.result.steps_shared == sum(step.sharers > 1 for step in shared.steps)
        torch.testing.assert_close(shared.latents, alone.latents, rtol=1e-3, atol=1e-3)


async def test_what_sharing_would_save_is_measured_for_the_shapes_that_are_named(serve: Serve) -> None:
    async with serve(slots=2, step_sharing="auto", shapes="64x64x9,96x64x5", step_sharers=2) as caller:
        measured = (await caller.describe()).step_sharing.measured
    assert [(each.shape, each.runs) for each in measured] == [
        (sampling_pb2.VideoShape(width=64, height=64, num_frames=9), 2),
        (sampling_pb2.VideoShape(width=96, height=64, num_frames=5), 2),
    ]
    assert all(each.serial_seconds > 0 and each.shared_seconds > 0 for each in measured)
