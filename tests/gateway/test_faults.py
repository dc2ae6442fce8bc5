"""Stages and gateways that are lost at bad moments: every generation ends once, with the clip of an undisturbed run."""

import asyncio
import random
import signal
from pathlib import Path

import grpc
import pytest

from rushes.v1 import denoiser_pb2_grpc, sampling_pb2
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.chassis.errors import InvalidRequest
from services.gateway.store.database import open_database
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories
from tests.gateway.processes import process, watch
from tests.gateway.stage_servers import Addresses, Behaviour, Denoiser, serving, stages
from tests.gateway.suite import clip, eventually, gateway, kind, kinds, suite

SPEC = gp.GenerationSpec(prompt="a red circle", seed=7)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The clip of a run in which nothing happens."""

    async def run() -> bytes:
        async with suite(tmp_path_factory.mktemp("undisturbed")) as running:
            return clip(await running.generate(SPEC))

    with asyncio.Runner() as runner:
        return runner.run(run())


def once(index: int, error: type[Exception] = RuntimeError):
    """A hook that breaks the first time that it meets `index`."""
    broken = []

    def hook(at: int) -> None:
        if at == index and not broken:
            broken.append(at)
            raise error("broken by the test")

    return hook


@pytest.mark.parametrize("step", [0, 3, 5])
async def test_a_denoiser_lost_at_any_step_is_resumed_from_its_last_checkpoint(tmp_path, undisturbed, step):
    behaviour = Behaviour(on_step=once(step))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(SPEC)
        assert clip(events) == undisturbed
        resumed = [event.resumed for event in events if event.HasField("resumed")]
        assert [(one.next_step, one.reason) for one in resumed] == [(step, "STAGE_LOST")]
        assert behaviour.steps == [0, 1, 2, 3, 4, 5]


async def test_losses_with_a_checkpoint_in_between_do_not_add_up(tmp_path, undisturbed):
    seen = set()

    def hook(at: int) -> None:
        if at not in seen:
            seen.add(at)
            raise RuntimeError("broken by the test")

    async with suite(tmp_path, Behaviour(on_step=hook), max_stage_losses=1) as running:
        assert clip(await running.generate(SPEC)) == undisturbed
        assert len(seen) == 6


async def test_a_stage_that_is_lost_too_often_at_one_step_fails_the_generation(tmp_path):
    def hook(at: int) -> None:
        if at == 2:
            raise RuntimeError("broken by the test")

    behaviour = Behaviour(on_step=hook)
    async with suite(tmp_path, behaviour, max_stage_losses=2) as running:
        events = await running.generate(SPEC)
        failure = events[-1].failed.generation.failure
        assert (failure.stage, failure.retryable) == ("denoiser", True)
        assert behaviour.calls.count("denoise") == 3


async def test_without_a_checkpoint_a_lost_denoiser_begins_again(tmp_path, undisturbed):
    behaviour = Behaviour(on_step=once(3))
    async with suite(tmp_path, behaviour, checkpoint_seconds=30) as running:
        assert clip(await running.generate(SPEC)) == undisturbed
        assert behaviour.steps == [0, 1, 2, 0, 1, 2, 3, 4, 5]


async def test_a_denoiser_that_drains_hands_its_work_back(tmp_path, undisturbed):
    behaviour = Behaviour(drain_at={2, 4})
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(SPEC)
        assert clip(events) == undisturbed
        assert [event.resumed.reason for event in events if event.HasField("resumed")] == ["STAGE_DRAINED"] * 2
        assert behaviour.steps == [0, 1, 2, 3, 4, 5]


async def test_the_solver_state_moves_between_the_pools_of_the_two_experts(tmp_path, undisturbed):
    high = Behaviour(experts=(sampling_pb2.EXPERT_HIGH_NOISE,))
    low = Behaviour(experts=(sampling_pb2.EXPERT_LOW_NOISE,))
    adder = denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server
    async with stages(high) as at, serving("DenoiserService", Denoiser(low), adder) as second:
        both = Addresses(encoder=at.encoder, denoiser=f"{at.denoiser},{second}", postprocess=at.postprocess)
        stored = {"database_url": f"sqlite:///{tmp_path}/r.db", "artifacts_url": f"{tmp_path}/a"}
        async with gateway(both, high, **stored) as running:
            events = await running.generate(SPEC)
    assert clip(events) == undisturbed
    assert (high.steps, low.steps) == ([0, 1, 2], [3, 4, 5])
    assert [event.resumed.reason for event in events if event.HasField("resumed")] == ["EXPERT_BOUNDARY"]


async def test_priority_takes_the_device_between_two_steps_and_what_yields_loses_no_step(tmp_path, undisturbed):
    behaviour = Behaviour(slots=1, step_seconds=0.5)
    async with suite(tmp_path, behaviour, checkpoint_seconds=30) as running:
        light = asyncio.create_task(running.generate(SPEC))
        await eventually(lambda: behaviour.steps)
        urgent = await running.generate(gp.GenerationSpec(prompt="now", seed=8, tier=gp.TIER_PRIORITY))
        assert kinds(urgent)[-1] == "succeeded"
        assert not light.done()
        events = await light
        assert clip(events) == undisturbed
        assert [event.resumed.reason for event in events if event.HasField("resumed")] == ["STAGE_PREEMPTED"]
        assert len(behaviour.steps) == 12


@pytest.mark.parametrize("fragment", [0, 2])
async def test_a_postprocessor_lost_in_the_middle_shows_no_fragment_twice(tmp_path, undisturbed, fragment):
    async with suite(tmp_path, Behaviour(on_fragment=once(fragment))) as running:
        events = await running.generate(SPEC)
        assert clip(events) == undisturbed
        assert kinds(events).count("fragment") == 3
        assert kinds(events).count("rendering") == 1


async def test_a_stage_that_refuses_the_work_fails_it_at_once(tmp_path):
    behaviour = Behaviour(on_step=once(2, InvalidRequest))
    async with suite(tmp_path, behaviour) as running:
        failed = (await running.generate(SPEC))[-1].failed.generation
        assert (failed.failure.stage, failed.failure.reason) == ("denoiser", "INVALID_REQUEST")
        assert not failed.failure.retryable
        assert behaviour.calls.count("denoise") == 1


async def test_a_stage_that_is_lost_again_and_again_fails_the_generation(tmp_path):
    def broken(_: int) -> None:
        raise RuntimeError("broken by the test")

    async with suite(tmp_path, Behaviour(on_step=broken)) as running:
        failed = (await running.generate(SPEC))[-1].failed.generation
        assert failed.failure.stage == "denoiser"
        assert failed.failure.retryable


async def test_an_artifact_store_that_cannot_be_written_fails_the_generation_clearly(tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "checkpoints").write_text("a file where a folder has to be")
    async with suite(tmp_path) as running:
        failed = (await running.generate(SPEC))[-1].failed.generation
        assert (failed.failure.stage, failed.failure.reason) == ("gateway", "ARTIFACTS_UNAVAILABLE")
        assert not (tmp_path / "artifacts" / "clips").exists()


async def killed_and_taken_over(folder: Path, database_url: str, *, step: int) -> bytes:
    """Kill -9 the gateway when `step` begins; a second one, which ran already or starts then, ends the work."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    def on_step(index: int) -> None:
        if index == step and not go_on.is_set():
            reached.set()

    behaviour = Behaviour(on_step=on_step, step_seconds=0.05)
    async with stages(behaviour) as at, process(at, database_url, folder) as (first, address):
        async with grpc.aio.insecure_channel(address) as channel:
            request = gp.CreateGenerationRequest(spec=SPEC)
            made = (await GenerationServiceStub(channel).CreateGeneration(request)).generation
        before = asyncio.create_task(watch(address, made.id, 0))
        await reached.wait()
        go_on.set()
        first.send_signal(signal.SIGKILL)
        events = await before
        async with process(at, database_url, folder) as (_, second):
            events += await watch(second, made.id, events[-1].sequence if events else 0)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert kinds(events)[-1] == "succeeded"
        assert "LEASE_EXPIRED" in [event.resumed.reason for event in events if event.HasField("resumed")]
    async with open_database(database_url) as database:
        await check_histories(database, kind, all_ended=True)
    return clip(events)


async def test_a_gateway_killed_in_the_middle_is_taken_over_by_another_on_sqlite(tmp_path, undisturbed):
    database_url = f"sqlite:///{tmp_path}/rushes.db"
    assert await killed_and_taken_over(tmp_path, database_url, step=3) == undisturbed


async def test_a_gateway_killed_in_the_middle_is_taken_over_by_another_on_postgres(tmp_path, undisturbed, postgres):
    with empty_database(postgres) as database_url:
        assert await killed_and_taken_over(tmp_path, database_url, step=3) == undisturbed


async def test_a_gateway_that_is_stopped_lets_its_generation_finish(tmp_path, undisturbed):
    database_url = f"sqlite:///{tmp_path}/rushes.db"
    async with stages(Behaviour(step_seconds=0.1)) as at, process(at, database_url, tmp_path) as (running, address):
        async with grpc.aio.insecure_channel(address) as channel:
            call = GenerationServiceStub(channel).Generate(gp.GenerateRequest(spec=SPEC))
            events: list[gp.GenerationEvent] = []
            async for response in call:
                if not events:
                    running.terminate()
                events.append(response.event)
        assert await running.wait() == 0
    assert kinds(events)[-1] == "succeeded"
    assert clip(events) == undisturbed


async def survive_a_storm(folder: Path, *, requests: int, at_once: int) -> None:
    """Stages that break at random, viewers that go away at random: everything ends once, and nothing hangs."""
    chance = random.Random(7)

    def breaks(_: int) -> None:
        if chance.random() < 0.04:
            raise RuntimeError("broken by the test")

    behaviour = Behaviour(on_step=breaks, on_fragment=breaks)
    async with suite(folder, behaviour) as running:
        turns = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with turns:
                spec = gp.GenerationSpec(prompt=f"number {number}", seed=number)
                call = running.stub.Generate(gp.GenerateRequest(spec=spec))
                queued = await running.until(call, "queued")
                call.cancel()
                events = await watch(running.address, queued.generation_id, 1)
                assert kinds(events)[-1] == "succeeded"

        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                group.create_task(one(number))
        async with open_database(running.config.database_url) as database:
            assert await check_histories(database, kind, all_ended=True) == requests


async def test_a_storm_of_losses_and_disconnects_leaves_nothing_hanging(tmp_path):
    await survive_a_storm(tmp_path, requests=24, at_once=8)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_a_long_storm_of_losses_and_disconnects_leaves_nothing_hanging(tmp_path):
    await survive_a_storm(tmp_path, requests=1536, at_once=64)
