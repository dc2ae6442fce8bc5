"""What only a GPU shows: swapped and hosted experts, runs cut and cancelled, memory; skips, saying so, without one."""

import asyncio
import copy
from pathlib import Path

import pytest
import torch

from services.denoiser.experts import Expert
from services.denoiser.memory import footprint_of
from services.denoiser.offload import HostedBlocks
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import VideoShape
from services.denoiser.transformer import Transformer
from services.model.folder import ModelFolder
from tests.denoiser.caller import STEPS, conditioning, requests, start
from tests.denoiser.conftest import Serve
from tests.denoiser.test_service import SLOW

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
LATENTS = VideoShape(width=64, height=64, frames=9).latents(16)
X = prior(LATENTS, 1)
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))


def loaded(folder: Path, experts: str) -> ExpertPool:
    return ExpertPool.load(ModelFolder(folder), experts, torch.bfloat16, torch.device(DEVICE))


def velocity(transformer: Transformer) -> torch.Tensor:
    return transformer(X, 900.0, transformer.read(TEXT, LATENTS))


def test_experts_that_change_places_compute_what_resident_ones_do(untrained: Path) -> None:
    both, swapped = loaded(untrained, "both"), loaded(untrained, "swap")
    assert swapped.residence is not None
    wanted = {expert: velocity(transformer) for expert, transformer in both.experts.items()}
    for expert in (Expert.HIGH, Expert.LOW, Expert.HIGH, Expert.LOW):
        other = Expert.LOW if expert is Expert.HIGH else Expert.HIGH
        assert torch.equal(velocity(swapped.experts[expert]), wanted[expert])
        # Fetched while this one still works, and this one works on.
        swapped.residence.expect(other)
        assert torch.equal(velocity(swapped.experts[expert]), wanted[expert])
    assert swapped.residence.swaps == 3
    assert swapped.residence.prefetch_bytes > 0


async def test_a_cancel_frees_the_seat_on_the_card(serve: Serve) -> None:
    text = conditioning()
    async with serve(device=DEVICE, slots=1) as caller, asyncio.timeout(60):
        call = caller.stub.Denoise(requests(start(text, **SLOW), text))
        async for response in call:
            if response.HasField("step"):
                break
        call.cancel()
        while (await caller.describe()).memory.reserved_bytes:  # noqa: ASYNC110  (asked over the wire)
            await asyncio.sleep(0.01)
        assert len((await caller.denoise()).steps) == STEPS


def test_hosted_blocks_compute_what_resident_ones_do(untrained: Path) -> None:
    plain = loaded(untrained, "high").experts[Expert.HIGH]
    module = copy.deepcopy(plain.module)
    module.blocks.to("cpu")
    hosted = HostedBlocks(module.blocks, torch.device(DEVICE))
    arranged = Transformer(module, hosted=hosted)
    for _ in range(3):
        assert torch.equal(velocity(arranged), velocity(plain))
    assert hosted.on_device == set()


@pytest.mark.parametrize("solver", ["SOLVER_UNIPC", "SOLVER_EULER", "SOLVER_DPMPP_2M"])
async def test_a_run_cut_at_any_step_equals_the_straight_run(serve: Serve, solver: str) -> None:
    sampling = {"solver": solver}
    async with serve(device=DEVICE, slots=2) as first, serve(device=DEVICE) as second:
        whole = await first.denoise(sampling=sampling)
        for cut in range(1, STEPS):
            begun = await first.denoise(sampling=sampling, end_step=cut)
            rest = await second.denoise(sampling=sampling, state=begun.state, first_step=cut)
            assert rest.bundles[-1].payload == whole.bundles[-1].payload, cut
        described = await first.describe()
    assert described.dtype == "bfloat16"
    assert described.memory.available_bytes > 0


def test_the_memory_that_a_run_keeps_is_its_text_and_its_angles(untrained: Path) -> None:
    pool = loaded(untrained, "high")
    each = footprint_of(pool, LATENTS, batched=True)
    config = pool.first.module.config
    keys_and_values = 2 * config.num_layers * 2 * TEXT.shape[1] * pool.first.width * 2
    assert each.held >= keys_and_values
    assert each.peak > 0
