"""A remembered state at the boundary: the same latents, bit for bit, and only where everything before it is equal."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.v1 import denoiser_pb2
from services.denoiser.conditioning import Conditioning
from services.denoiser.guidance import Guidance
from services.denoiser.plan import Plan
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import PrefixCache, prefix_key
from services.denoiser.settings import Settings
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState
from tests.denoiser.caller import STEPS, conditioning
from tests.denoiser.conftest import Serve
from tests.denoiser.test_adapters import add_adapters

TEXT = conditioning()


def reused(outcome: Any) -> int:
    return int(outcome.accepted.reused_steps)


async def test_other_low_noise_settings_begin_from_the_remembered_boundary_bit_for_bit(serve: Serve) -> None:
    async with serve() as fresh, serve() as caller:
        first = await caller.denoise(reuse_prefix=True)
        straight = await fresh.denoise(sampling={"guidance_scale_low": 2.0})
        again = await caller.denoise(sampling={"guidance_scale_low": 2.0}, reuse_prefix=True)
    assert first.accepted is not None
    assert again.accepted is not None
    boundary = first.accepted.boundary_step
    assert (reused(first), reused(again)) == (0, boundary)
    assert again.accepted.first_step == boundary
    assert len(again.steps) == STEPS - boundary
    assert torch.equal(again.latents, straight.latents)
    assert not torch.equal(again.latents, first.latents)


async def test_a_run_that_does_not_ask_reuses_and_leaves_nothing(serve: Serve) -> None:
    async with serve() as caller:
        await caller.denoise()
        assert reused(await caller.denoise(reuse_prefix=True)) == 0
        assert reused(await caller.denoise()) == 0
        assert reused(await caller.denoise(reuse_prefix=True)) > 0


async def test_a_pool_of_the_high_expert_hands_the_remembered_state_on(serve: Serve) -> None:
    async with serve(experts="high") as high, serve(experts="low") as low, serve() as both:
        straight = await both.denoise()
        await high.denoise(reuse_prefix=True)
        handed = await high.denoise(reuse_prefix=True)
        assert handed.result is not None
        assert handed.result.reason == denoiser_pb2.BUNDLE_REASON_BOUNDARY
        assert handed.result.steps_run == 0
        ended = await low.denoise(first_step=handed.result.next_step, state=handed.state)
    assert torch.equal(ended.latents, straight.latents)


async def test_only_adapters_of_the_high_expert_tell_runs_apart(serve: Serve, untrained: Path, tmp_path: Path) -> None:
    def style(**weights: float) -> dict[str, Any]:
        return {"reuse_prefix": True, "adapters": [denoiser_pb2.AdapterUse(id="style-0", **weights)]}

    async with serve(model=add_adapters(Path(shutil.copytree(untrained, tmp_path / "model")), 1)) as caller:
        await caller.denoise(**style())
        assert reused(await caller.denoise(reuse_prefix=True)) == 0
        assert reused(await caller.denoise(**style(weight_high=0.5))) == 0
        straight = await caller.denoise(adapters=style(weight_low=0.5)["adapters"])
        again = await caller.denoise(**style(weight_low=0.5))
    assert reused(again) > 0
    assert torch.equal(again.latents, straight.latents)


def plan(pool: ExpertPool, **settings: Any) -> Plan:
    chosen: Settings = replace(pool.defaults, **{"steps": STEPS, **settings})
    shape = VideoShape(width=64, height=64, frames=5)
    return Plan(
        shape=shape,
        latents=shape.latents(16),
        settings=chosen,
        schedule=chosen.schedule(),
        seed=1,
        first_step=0,
        end_step=STEPS,
        fingerprint="",
    )


TEXTS = Conditioning(positive=torch.ones(3, 32), negative=torch.zeros(2, 32))
FACTS: dict[str, Any] = {"model": "m", "numerics": "float32", "adapters": [("a", "1", "1.0")]}


def test_the_key_names_all_that_shapes_the_high_phase_and_nothing_else(pool: ExpertPool) -> None:
    key = prefix_key(plan(pool), TEXTS, **FACTS)
    assert key is not None
    same = [
        prefix_key(plan(pool, guidance=Guidance(high=4.0, low=1.5)), TEXTS, **FACTS),
        prefix_key(plan(pool, guidance=Guidance(high=4.0, low=3.0, timestep_min=1.0)), TEXTS, **FACTS),
    ]
    assert set(same) == {key}
    other = [
        prefix_key(plan(pool, guidance=Guidance(high=4.5, low=3.0)), TEXTS, **FACTS),
        prefix_key(plan(pool, guidance=Guidance(high=4.0, low=3.0, timestep_max=950.0)), TEXTS, **FACTS),
        prefix_key(plan(pool, flow_shift=4.0), TEXTS, **FACTS),
        prefix_key(plan(pool, steps=STEPS + 1), TEXTS, **FACTS),
        prefix_key(replace(plan(pool), seed=2), TEXTS, **FACTS),
        prefix_key(replace(plan(pool), batched=True), TEXTS, **FACTS),
        prefix_key(plan(pool), replace(TEXTS, positive=torch.zeros(3, 32)), **FACTS),
        prefix_key(plan(pool), replace(TEXTS, negative=torch.ones(2, 32)), **FACTS),
        prefix_key(plan(pool), replace(TEXTS, positive=torch.ones(3, 32, dtype=torch.bfloat16)), **FACTS),
        prefix_key(plan(pool), TEXTS, **FACTS | {"model": "n"}),
        prefix_key(plan(pool), TEXTS, **FACTS | {"numerics": "bfloat16"}),
        prefix_key(plan(pool), TEXTS, **FACTS | {"adapters": [("a", "1", "0.5")]}),
    ]
    assert None not in other
    assert len({key, *other}) == len(other) + 1


def test_a_run_that_crosses_no_boundary_has_no_key(pool: ExpertPool) -> None:
    whole = plan(pool)
    assert prefix_key(plan(pool, boundary_ratio=0.0), TEXTS, **FACTS) is None
    assert prefix_key(plan(pool, boundary_ratio=1.0), TEXTS, **FACTS) is None
    assert prefix_key(replace(whole, first_step=1), TEXTS, **FACTS) is None
    assert prefix_key(replace(whole, end_step=whole.boundary_step - 1), TEXTS, **FACTS) is None
    assert prefix_key(replace(whole, end_step=whole.boundary_step), TEXTS, **FACTS) is not None


@pytest.mark.parametrize(("capacity", "kept"), [(0, ""), (400, "c"), (800, "ac"), (1200, "abc")])
def test_the_least_recently_used_state_goes_first(capacity: int, kept: str) -> None:
    cache = PrefixCache(capacity)
    for key in "ab":
        cache.put(key, SolverState(step=1, x=torch.zeros(100)))
    cache.get("a")
    cache.put("c", SolverState(step=1, x=torch.zeros(100)))
    assert "".join(key for key in "abc" if cache.get(key) is not None) == kept
    assert cache.nbytes == 400 * len(kept)
