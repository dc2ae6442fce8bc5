"""Admission by measured memory, and a device that runs out of it: one job pays, and no other notices."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch

from services.chassis.errors import Exhausted, FailedPrecondition, RushesError, from_rpc_error
from services.denoiser.memory import MemoryBook, footprint_of
from services.denoiser.pool import ExpertPool
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.step_scheduler import (
    Admitted,
    AdmittedAfter,
    Footprint,
    Refused,
    StepScheduler,
    TooLarge,
)
from tests.denoiser.caller import STEPS, Caller
from tests.denoiser.conftest import Serve

SMALL, LARGE = VideoShape(width=64, height=64, frames=9), VideoShape(width=128, height=128, frames=9)
LARGE_FIELDS = {"width": 128, "height": 128}


async def refusal(caller: Caller, **fields: object) -> RushesError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.denoise(**fields)  # type: ignore[arg-type]  # passed through
    return from_rpc_error(refused.value)


def taken(pool: ExpertPool, latents: LatentShape, *, batched: bool) -> int:
    each = footprint_of(pool, latents, batched=batched)
    return each.peak + each.held


def test_the_peak_grows_with_the_clip_and_with_the_batch(pool: ExpertPool) -> None:
    small, large = SMALL.latents(16), LARGE.latents(16)
    # Four times the tokens; the text costs the same.
    assert taken(pool, large, batched=True) > 2 * taken(pool, small, batched=True)
    assert taken(pool, large, batched=True) > taken(pool, large, batched=False)
    widest = large.tokens * pool.first.module.blocks[0].ffn.net[0].proj.out_features * 4
    assert widest < taken(pool, large, batched=False) < 20 * widest


def test_what_was_measured_is_not_measured_again_by_a_process_of_the_same_model_and_device(
    pool: ExpertPool, tmp_path: Path
) -> None:
    MemoryBook(pool, tmp_path).calibrate([SMALL], lambda _latents: Footprint(peak=1000, held=10))
    later = MemoryBook(pool, tmp_path)
    later.calibrate([SMALL, LARGE], lambda latents: Footprint(peak=latents.tokens, held=20))
    assert later.measured == {
        SMALL: Footprint(peak=1000, held=10),
        LARGE: Footprint(peak=LARGE.latents(16).tokens, held=20),
    }
    assert MemoryBook(pool, tmp_path).measured == later.measured


@pytest.mark.parametrize(
    "content", ['{"another model cpu float32": {"64x64x9": [5, 1]}}', '{"key": {"64x64x9": 5}}', "[]", "no JSON"]
)
def test_a_file_of_another_model_or_form_is_measured_anew(pool: ExpertPool, tmp_path: Path, content: str) -> None:
    (tmp_path / "memory.json").write_text(content)
    book = MemoryBook(pool, tmp_path)
    assert not book.measured
    book.calibrate([SMALL], lambda _latents: Footprint(peak=1000, held=10))
    assert MemoryBook(pool, tmp_path).measured == {SMALL: Footprint(peak=1000, held=10)}


def test_a_size_that_was_not_measured_is_taken_by_its_tokens_and_its_text_in_full(pool: ExpertPool) -> None:
    book, state = MemoryBook(pool, None), 4 * 4 * LARGE.latents(16).numel
    book.calibrate([LARGE], lambda _latents: Footprint(peak=4000, held=10))
    assert book.footprint(LARGE) == Footprint(peak=4000, held=10 + state)
    assert book.footprint(SMALL) == Footprint(peak=1000, held=10 + state // 4)
    twice = VideoShape(width=256, height=128, frames=9)
    assert book.footprint(twice) == Footprint(peak=8000, held=20 + 2 * state)


def test_what_a_run_keeps_between_its_steps_counts_for_every_run(pool: ExpertPool) -> None:
    latents = SMALL.latents(16)
    each = footprint_of(pool, latents, batched=True)
    config, text_length = pool.first.module.config, pool.manifest.text.max_length
    keys_and_values = 2 * config.num_layers * 2 * text_length * pool.first.width * 4
    angles = latents.tokens * config.attention_head_dim // 2 * 8
    assert each.held == keys_and_values + angles
    assert each.peak > 0
    book = MemoryBook(pool, None)
    book.calibrate([SMALL], lambda _latents: each)
    plain = book.footprint(SMALL)
    assert plain.held == each.held + 4 * 4 * latents.numel
    residuals = 2 * 2 * latents.tokens * pool.first.width * 4
    assert book.footprint(SMALL, cached_prompts=2, adapters=7).held == plain.held + residuals + 7
    # One step at a time: the second run adds what it keeps, and no second peak.
    scheduler = StepScheduler(2, memory=plain.peak + 2 * plain.held)
    assert isinstance(scheduler.admit(0, plain), Admitted)
    assert isinstance(scheduler.admit(0, plain), Admitted)
    smaller = StepScheduler(2, memory=plain.peak + 2 * plain.held - 1)
    assert isinstance(smaller.admit(0, plain), Admitted)
    assert smaller.admit(0, plain) == Refused(memory=True)


def test_the_scheduler_counts_the_greatest_peak_and_what_every_run_holds() -> None:
    scheduler = StepScheduler(9, memory=100)
    assert scheduler.admit(0, Footprint(peak=91, held=10)) == TooLarge(needed=101, available=100)
    first = scheduler.admit(0, Footprint(peak=60, held=10))
    assert isinstance(first, Admitted)
    assert isinstance(scheduler.admit(0, Footprint(peak=50, held=20)), Admitted)
    assert scheduler.reserved == 90
    assert scheduler.admit(0, Footprint(peak=10, held=20)) == Refused(memory=True)
    scheduler.leave(first.run)
    assert isinstance(scheduler.admit(0, Footprint(peak=10, held=20)), Admitted)


def test_paused_runs_of_a_lower_class_leave_with_their_state_where_memory_is_short() -> None:
    scheduler = StepScheduler(9, memory=100)
    runs = []
    for _ in range(3):
        admission = scheduler.admit(0, Footprint(peak=10, held=20))
        assert isinstance(admission, Admitted)
        scheduler.begin(admission.run)
        runs.append(admission.run)
    urgent = scheduler.admit(1, Footprint(peak=50, held=20))
    assert isinstance(urgent, AdmittedAfter)
    assert urgent.victims == (runs[2], runs[1])
    assert scheduler.must_leave(runs[2])
    assert not scheduler.must_leave(runs[0])


async def test_an_oversized_clip_is_refused_by_bytes_and_its_neighbours_go_on(
    serve: Serve, pool: ExpertPool, tmp_path: Path
) -> None:
    limit = taken(pool, SMALL.latents(16), batched=True) * 2
    async with serve(slots=2, memory_bytes=limit, cache=tmp_path, shapes="64x64x9,128x128x9") as caller:
        neighbour = asyncio.create_task(caller.denoise())
        error = await refusal(caller, shape=LARGE_FIELDS)
        memory = (await caller.describe()).memory
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "DEVICE_MEMORY"
        assert f"{limit} are available" in error.message
        assert len((await neighbour).steps) == STEPS
    assert memory.available_bytes == limit
    assert [each.shape.width for each in memory.measured] == [64, 128]
    assert all(each.peak_bytes > each.held_bytes > 0 for each in memory.measured)
    assert (tmp_path / "memory.json").exists()


@contextmanager
def memory_that_suffices_for(rows: int, tokens: int) -> Iterator[None]:
    """Of the evaluations of so many tokens, those of more than `rows` texts run out of memory in their last block."""

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        last = isinstance(module, torch.nn.Linear) and module.out_features == 64
        if last and inputs[0].shape[-2] == tokens and inputs[0].shape[0] > rows:
            raise torch.OutOfMemoryError("none left")

    with torch.nn.modules.module.register_module_forward_hook(check):
        yield


async def test_a_step_that_runs_out_of_memory_is_tried_again_with_one_prompt_after_the_other(caller: Caller) -> None:
    whole = await caller.denoise()
    with memory_that_suffices_for(1, SMALL.latents(16).tokens):
        split = await caller.denoise()
    assert whole.result is not None
    assert split.result is not None
    assert (whole.result.guidance_split, split.result.guidance_split) == (False, True)
    assert len(split.steps) == STEPS
    torch.testing.assert_close(split.latents, whole.latents, rtol=1e-3, atol=1e-3)


async def test_a_run_that_does_not_fit_at_all_fails_alone(caller: Caller) -> None:
    expected = (await caller.denoise()).bundles[-1].payload
    with memory_that_suffices_for(0, LARGE.latents(16).tokens):
        neighbour = asyncio.create_task(caller.denoise())
        error = await refusal(caller, shape=LARGE_FIELDS)
        assert isinstance(error, Exhausted)
        assert error.reason == "DEVICE_MEMORY"
        assert (await neighbour).bundles[-1].payload == expected
    assert (await caller.denoise(shape=LARGE_FIELDS)).result is not None
