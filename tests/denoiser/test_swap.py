"""Both experts where one fits: the same latents, as few swaps as can be, and never more than one on the device."""

import asyncio
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.v1 import sampling_pb2
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.step_scheduler import Admitted, StepScheduler, Wish
from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from tests.denoiser.caller import Caller, Outcome, conditioning
from tests.denoiser.conftest import Serve

# A high-noise phase that lasts until all runs have begun.
LONG: dict[str, Any] = {"shape": {"width": 128, "height": 128}, "sampling": {"steps": 20}}
HIGH, LOW = Wish(expert=Expert.HIGH), Wish(expert=Expert.LOW)


def weights_here(pool: ExpertPool) -> dict[Expert, int]:
    return {
        expert: sum(p.nbytes for p in transformer.module.parameters() if not p.is_meta)
        for expert, transformer in pool.experts.items()
    }


def test_one_experts_weights_are_in_memory_at_a_time(untrained: Path) -> None:
    pool = ExpertPool.load(ModelFolder(untrained), "swap", torch.float32, torch.device("cpu"))
    assert pool.residence is not None
    for expert, other in ((Expert.HIGH, Expert.LOW), (Expert.LOW, Expert.HIGH), (Expert.HIGH, Expert.LOW)):
        pool.residence.bring_in(expert)
        here = weights_here(pool)
        assert here[expert] > 0
        assert here[other] == 0
        assert pool.resident == (expert,)
    assert pool.residence.swaps == 2


def test_an_expert_that_cannot_come_leaves_room_for_the_other(untrained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(untrained, tmp_path / "model"))
    pool = ExpertPool.load(ModelFolder(folder), "swap", torch.float32, torch.device("cpu"))
    assert pool.residence is not None
    (folder / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelRefused):
        pool.residence.bring_in(Expert.LOW)
    assert weights_here(pool) == {Expert.HIGH: 0, Expert.LOW: 0}
    pool.residence.bring_in(Expert.HIGH)
    assert pool.resident == (Expert.HIGH,)
    assert weights_here(pool)[Expert.HIGH] > 0


async def both_at_once(caller: Caller) -> list[Outcome]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller.denoise(text=conditioning(seed), seed=seed, **LONG)) for seed in range(3)]
    return [task.result() for task in tasks]


async def test_swapped_experts_make_the_same_latents_with_one_swap_for_all_runs_at_once(serve: Serve) -> None:
    async with serve(slots=3) as both, serve(slots=3, experts="swap") as swapping:
        before = (await swapping.describe()).residency
        assert (before.mode, before.swaps) == ("swap", 0)
        assert list(before.resident) == [sampling_pb2.EXPERT_HIGH_NOISE]
        expected, made = await both_at_once(both), await both_at_once(swapping)
        after = (await swapping.describe()).residency
        assert [each.bundles[-1].payload for each in made] == [each.bundles[-1].payload for each in expected]
        assert after.swaps == 1
        assert after.swap_seconds > 0
        assert list(after.resident) == [sampling_pb2.EXPERT_LOW_NOISE]
        # One after the other: back to the high-noise expert, and to the low-noise one again.
        alone = await swapping.denoise(text=conditioning(0), seed=0, **LONG)
        assert alone.bundles[-1].payload == expected[0].bundles[-1].payload
        assert (await swapping.describe()).residency.swaps == 3
        assert (await both.describe()).residency.mode == "both"


def stepping(scheduler: StepScheduler, *wishes: Wish) -> list[int]:
    runs = []
    for wish in wishes:
        admission = scheduler.admit(0)
        assert isinstance(admission, Admitted)
        scheduler.begin(admission.run)
        scheduler.wants(admission.run, wish)
        runs.append(admission.run)
    return runs


def simulated(swap_seconds: float, steps: list[list[Wish]], seconds: float = 1.0) -> list[int]:
    """The order of runs until each has had its steps."""
    scheduler = StepScheduler(len(steps), swap_seconds=swap_seconds)
    runs = stepping(scheduler, *(each[0] for each in steps))
    left = {run: list(each) for run, each in zip(runs, steps, strict=True)}
    order = []
    while left:
        run = scheduler.choose(left)
        assert run is not None
        scheduler.granted(run)
        scheduler.charge(run, seconds)
        order.append(runs.index(run))
        left[run].pop(0)
        if left[run]:
            scheduler.wants(run, left[run][0])
        else:
            scheduler.end(run)
            del left[run]
    return order


def swaps(order: list[int], steps: list[list[Wish]]) -> int:
    left = [list(each) for each in steps]
    experts = [left[run].pop(0).expert for run in order]
    return sum(one != other for one, other in itertools.pairwise(experts))


def test_high_phases_are_drained_before_the_one_swap() -> None:
    steps = [[HIGH] * 3 + [LOW] * 2, [HIGH] * 5 + [LOW] * 2, [LOW] * 4]
    order = simulated(1000, steps)
    assert swaps(order, steps) == 1
    assert len(order) == sum(map(len, steps))


def test_a_step_waits_for_the_other_experts_no_longer_than_its_cap() -> None:
    steps = [[HIGH] * 20, [LOW]]
    order = simulated(5, steps)
    assert order.index(1) == 6
    assert swaps(order, steps) == 2


def test_the_device_is_kept_for_a_run_of_the_resident_expert_that_is_between_two_steps() -> None:
    scheduler = StepScheduler(2, swap_seconds=1000)
    high, low = stepping(scheduler, HIGH, LOW)
    scheduler.granted(high)
    assert scheduler.choose({low}) is None
    scheduler.wants(high, LOW)
    assert scheduler.choose({high, low}) is not None
    scheduler.wants(high, HIGH)
    scheduler.end(high)
    assert scheduler.choose({low}) == low
