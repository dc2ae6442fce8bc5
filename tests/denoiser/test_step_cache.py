"""Steps answered from the first block: off by default, said in the answer, and cut only where nothing is cached."""

import asyncio

import grpc
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from rushes.v1 import denoiser_pb2
from rushes.v1.sampling_pb2 import SOLVER_UNIPC, STEP_CACHE_FIRST_BLOCK, STEP_CACHE_OFF
from services.chassis.errors import InvalidRequest, from_rpc_error
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import REFRESH_STEPS, FirstBlockCache
from tests.denoiser.caller import Caller
from tests.denoiser.conftest import Serve

STEPS = 16
# The untrained model's first block changes little from step to step, whatever the step.
CACHED = {
    "steps": STEPS,
    "solver": SOLVER_UNIPC,
    "step_cache": STEP_CACHE_FIRST_BLOCK,
    "step_cache_threshold": 0.3,
}
LATENTS = LatentShape(channels=16, frames=1, height=4, width=4)


async def test_no_step_is_cached_unless_asked(caller: Caller) -> None:
    plain = await caller.denoise(sampling={"steps": STEPS})
    assert plain.accepted is not None
    assert plain.result is not None
    assert plain.accepted.sampling.step_cache == STEP_CACHE_OFF
    assert plain.result.steps_cached == 0
    assert not any(step.cached for step in plain.steps)


async def test_the_answer_says_what_was_cached(caller: Caller) -> None:
    cached = await caller.denoise(sampling=CACHED)
    assert cached.accepted is not None
    assert cached.result is not None
    assert cached.accepted.sampling.step_cache == STEP_CACHE_FIRST_BLOCK
    assert cached.accepted.sampling.step_cache_threshold == 0.3
    answered = [step.index for step in cached.steps if step.cached]
    assert cached.result.steps_cached == len(answered) > 0
    # Where a run may be cut, everything is computed.
    assert not any(index % REFRESH_STEPS == 0 or index == cached.accepted.boundary_step for index in answered)


async def test_a_threshold_of_zero_computes_every_step_to_rounding(caller: Caller) -> None:
    plain = await caller.denoise(sampling={**CACHED, "step_cache": STEP_CACHE_OFF})
    cached = await caller.denoise(sampling={**CACHED, "step_cache_threshold": 0.0})
    assert cached.result is not None
    assert cached.result.steps_cached == 0
    assert torch.allclose(cached.latents, plain.latents, atol=1e-4)


async def test_a_cached_run_is_continued_bit_for_bit_from_every_checkpoint(serve: Serve) -> None:
    async with serve() as first, serve() as second:
        straight = await first.denoise(sampling=CACHED, checkpoints=denoiser_pb2.CheckpointPolicy(every_seconds=0))
        boundary = straight.accepted.boundary_step if straight.accepted is not None else 0
        checkpoints = [b for b in straight.bundles if b.announced.reason == denoiser_pb2.BUNDLE_REASON_CHECKPOINT]
        steps = [checkpoint.announced.next_step for checkpoint in checkpoints]
        assert set(steps) <= {boundary, *range(0, STEPS, REFRESH_STEPS)}
        for step in sorted({boundary, *range(REFRESH_STEPS, STEPS, REFRESH_STEPS)}):
            begun = await first.denoise(sampling=CACHED, end_step=step)
            ended = await second.denoise(sampling=CACHED, first_step=step, state=begun.state)
            assert torch.equal(ended.latents, straight.latents), step


async def test_a_drained_run_is_cut_where_nothing_is_cached(serve: Serve) -> None:
    async with serve() as caller, serve() as other:
        straight = await other.denoise(sampling=CACHED)
        draining, loop = caller.draining, asyncio.get_running_loop()
        assert draining is not None
        with register_module_forward_hook(lambda *_: loop.call_soon_threadsafe(draining.set) and None):
            cut = await caller.denoise(sampling=CACHED)
        assert cut.result is not None
        assert cut.accepted is not None
        assert cut.result.reason == denoiser_pb2.BUNDLE_REASON_DRAINED
        assert cut.result.next_step in {REFRESH_STEPS, cut.accepted.boundary_step}
        ended = await other.denoise(sampling=CACHED, first_step=cut.result.next_step, state=cut.state)
    assert torch.equal(ended.latents, straight.latents)


async def test_a_range_that_ends_inside_the_cache_is_refused_by_name(caller: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.denoise(sampling=CACHED, end_step=REFRESH_STEPS + 2)
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["start.end_step"]


def test_a_cache_answers_for_the_blocks_after_the_first(pool: ExpertPool) -> None:
    transformer = pool.experts[Expert.HIGH]
    x, cache = prior(LATENTS, 0), FirstBlockCache(threshold=0.5)
    context = transformer.read(torch.ones(1, 16, 32), LATENTS)
    ran: list[str] = []
    with transformer.module.blocks[1].ffn.net[2].register_forward_hook(lambda *_: ran.append("block")):
        full = transformer(x, 900.0, context, cache)
        assert not cache.answered
        again = transformer(x, 900.0, context, cache)
        assert cache.answered
        transformer(torch.roll(x, 1, 0) * -7, 1.0, context, cache)
    assert len(ran) == (1 if cache.answered else 2)
    assert torch.equal(full, again)
    assert torch.allclose(full, transformer(x, 900.0, context), atol=1e-5)


def test_a_change_that_is_no_number_is_computed() -> None:
    cache = FirstBlockCache(threshold=1.0)
    cache.keep(torch.zeros(4), torch.ones(4))
    assert cache.rest(torch.zeros(4)) is None
    cache.keep(torch.ones(4), torch.ones(4))
    assert cache.rest(torch.full((4,), float("nan"))) is None
    assert cache.rest(torch.ones(4)) is not None
