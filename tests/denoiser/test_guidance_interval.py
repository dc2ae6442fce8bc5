"""Guidance within an interval of timesteps, and in one batch or two passes: both survive a change of process."""

import pytest
import torch

from rushes.v1.sampling_pb2 import SOLVER_UNIPC
from services.denoiser.conditioning import Conditioning
from services.denoiser.experts import Expert
from services.denoiser.guidance import Guidance
from services.denoiser.guidance_batch import BATCHED_TOKENS, GuidanceBatch, Measured, measure
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape
from services.denoiser.velocity import GuidedVelocity
from tests.denoiser.caller import STEPS
from tests.denoiser.conftest import Serve

INTERVAL = {"guidance_timestep_min": 500.0, "guidance_timestep_max": 950.0, "solver": SOLVER_UNIPC}
LATENTS = LatentShape(channels=16, frames=1, height=4, width=4)


def test_guidance_holds_from_the_minimum_up_to_and_including_the_maximum() -> None:
    guidance = Guidance(high=4.0, low=3.0, timestep_min=500.0, timestep_max=950.0)
    scales = [guidance.scale_at(Expert.HIGH, timestep) for timestep in (951.0, 950.0, 500.0, 499.0)]
    assert scales == [1.0, 4.0, 4.0, 1.0]
    assert Guidance(high=4.0, low=3.0).scale_at(Expert.LOW, 0.0) == 3.0


@pytest.mark.parametrize(("batched", "sizes"), [(True, [1, 2, 1]), (False, [1, 1, 1, 1])])
def test_only_steps_in_the_interval_evaluate_the_negative_prompt(
    pool: ExpertPool, batched: bool, sizes: list[int]
) -> None:
    velocity = GuidedVelocity(
        experts=pool.experts,
        conditioning=Conditioning(positive=torch.ones(5, 32), negative=torch.zeros(2, 32)),
        text_length=16,
        guidance=Guidance(high=4.0, low=3.0, timestep_min=900.0, timestep_max=950.0),
        boundary_ratio=0.875,
        shape=LATENTS,
        batched=batched,
    )
    seen: list[int] = []
    head = pool.experts[Expert.HIGH].module.proj_out
    with head.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0]))):
        for timestep in (990.0, 940.0, 890.0):
            velocity(prior(LATENTS, 0), timestep)
    assert seen == sizes


async def test_an_interval_changes_the_clip_and_is_repeated(serve: Serve) -> None:
    async with serve() as caller:
        whole = await caller.denoise(sampling=INTERVAL)
        everywhere = await caller.denoise(sampling={"solver": SOLVER_UNIPC})
    assert whole.accepted is not None
    assert whole.accepted.sampling.guidance_timestep_min == 500.0
    assert whole.accepted.sampling.guidance_timestep_max == 950.0
    assert not torch.equal(whole.latents, everywhere.latents)


@pytest.mark.parametrize("batch", ["on", "off"])
async def test_a_run_with_an_interval_is_continued_bit_for_bit_at_every_step(serve: Serve, batch: str) -> None:
    other = "off" if batch == "on" else "on"
    async with serve(guidance_batch=batch) as first, serve(guidance_batch=other) as second:
        straight = await first.denoise(sampling=INTERVAL)
        for step in range(1, STEPS):
            begun = await first.denoise(sampling=INTERVAL, end_step=step)
            # The second process would group the prompts the other way: the state binds it.
            ended = await second.denoise(sampling=INTERVAL, first_step=step, state=begun.state)
            assert ended.accepted is not None
            assert ended.accepted.guidance_batched is (batch == "on")
            assert torch.equal(ended.latents, straight.latents), step


def test_what_was_measured_decides_from_its_size_on_and_the_clip_alone_elsewhere() -> None:
    won = GuidanceBatch(mode="measure", measured=Measured(tokens=9000, batched_seconds=1.0, sequential_seconds=2.0))
    lost = GuidanceBatch(mode="measure", measured=Measured(tokens=900, batched_seconds=2.0, sequential_seconds=1.0))
    assert [won.batched(tokens) for tokens in (1, 9000, 9001)] == [True, True, False]
    assert [lost.batched(tokens) for tokens in (899, 900, BATCHED_TOKENS)] == [True, False, False]
    assert GuidanceBatch(mode="on").batched(10**6)
    assert not GuidanceBatch(mode="off").batched(1)
    assert [GuidanceBatch().batched(tokens) for tokens in (BATCHED_TOKENS, BATCHED_TOKENS + 1)] == [True, False]


def test_measuring_times_both_ways(pool: ExpertPool) -> None:
    measured = measure(pool.first, LATENTS, 16)
    assert measured.tokens == 4
    assert measured.batched_seconds > 0 < measured.sequential_seconds


async def test_a_denoiser_says_what_it_measured(serve: Serve) -> None:
    async with serve(guidance_batch="measure") as caller:
        acceleration = (await caller.describe()).acceleration
    assert acceleration.guidance_batch == "measure"
    assert acceleration.batched_seconds > 0 < acceleration.sequential_seconds
