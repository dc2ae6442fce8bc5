"""Several gateways on one PostgreSQL, of which one dies; and a PostgreSQL that is itself stopped and started."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest
from sqlalchemy import select

from rushes.client import Client
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.gateway.store.database import open_database
from services.gateway.store.tables import generations
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories
from tests.gateway.postgres_server import PostgresServer, postgres_server
from tests.gateway.processes import process, watch
from tests.gateway.stage_servers import Behaviour, stages
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


@asynccontextmanager
async def stub(address: str) -> AsyncIterator[GenerationServiceStub]:
    """A caller of one gateway."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield GenerationServiceStub(channel)


async def test_a_gateway_that_runs_already_takes_over_and_watchers_go_on_there(tmp_path, undisturbed, postgres):
    reached = asyncio.Event()
    behaviour = Behaviour(on_step=lambda index: reached.set() if index == 3 else None, step_seconds=0.05, slots=1)
    with empty_database(postgres) as url:
        async with (
            stages(behaviour) as at,
            process(at, url, tmp_path) as (first, one),
            process(at, url, tmp_path) as (second, two),
            stub(one) as at_one,
            stub(two) as at_two,
        ):
            made = (await at_one.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
            begun = [asyncio.create_task(watch(address, made.id, 0)) for address in (one, two)]
            await reached.wait()
            async with open_database(url) as database, database.read() as connection:
                owner = (await connection.execute(select(generations.c.lease_owner))).scalar_one()
            victim, survivor = (first, at_two) if f"-{first.pid}-" in owner else (second, at_one)
            victim.send_signal(signal.SIGKILL)
            seen = {task: await task for task in begun}
            whole = [events for events in seen.values() if kinds(events)[-1] == "succeeded"]
            broken = [events for events in seen.values() if kinds(events)[-1] != "succeeded"]
            assert (len(whole), len(broken)) == (1, 1)
            call = survivor.WatchGeneration(
                gp.WatchGenerationRequest(id=made.id, after_sequence=broken[0][-1].sequence)
            )
            rest = [response.event async for response in call if response.event.sequence]
            assert broken[0] + rest == whole[0]
            assert clip(whole[0]) == undisturbed
            assert "LEASE_EXPIRED" in [event.resumed.reason for event in whole[0] if event.HasField("resumed")]
            again = [response.event async for response in survivor.Generate(gp.GenerateRequest(spec=SPEC))]
            assert kinds(again)[-1] == "succeeded"
        async with open_database(url) as database:
            assert await check_histories(database, kind, all_ended=True) == 2


async def test_a_gateway_that_was_frozen_past_its_lease_publishes_nothing_when_it_wakes(
    tmp_path, undisturbed, postgres
):
    behaviour = Behaviour()
    behaviour.gate.clear()
    with empty_database(postgres) as url:
        async with stages(behaviour) as at, process(at, url, tmp_path) as (frozen, one):
            async with stub(one) as at_one:
                made = (await at_one.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
                await eventually(lambda: behaviour.running)
            frozen.send_signal(signal.SIGSTOP)
            async with process(at, url, tmp_path) as (_, two):
                taken_over = asyncio.create_task(watch(two, made.id, 0))
                await eventually(lambda: len(behaviour.running) == 2)
                # Both run the same job now: the zombie's denoiser sends, and it reads none of it.
                behaviour.gate.set()
                events = await taken_over
                assert kinds(events)[-1] == "succeeded"
                frozen.send_signal(signal.SIGCONT)
                async with stub(one) as at_one:
                    assert kinds([response.event async for response in at_one.Generate(gp.GenerateRequest(spec=SPEC))])
                assert await watch(one, made.id, 0) == events
            assert clip(events) == undisturbed
            assert "LEASE_EXPIRED" in [event.resumed.reason for event in events if event.HasField("resumed")]
            assert behaviour.traces >= {made.trace_id}
        async with open_database(url) as database:
            assert await check_histories(database, kind, all_ended=True) == 2


async def test_a_gateway_that_stops_without_grace_hands_its_work_on_and_the_trace_goes_on(
    tmp_path, undisturbed, postgres
):
    behaviour = Behaviour()
    behaviour.gate.clear()
    with empty_database(postgres) as url:
        async with stages(behaviour) as at, process(at, url, tmp_path, grace_seconds=0) as (stopping, one):
            async with stub(one) as at_one:
                made = (await at_one.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
                await eventually(lambda: behaviour.running)
            stopping.terminate()
            assert await stopping.wait() == 0
            await eventually(lambda: not behaviour.running)
            async with process(at, url, tmp_path) as (_, two):
                behaviour.gate.set()
                events = await watch(two, made.id, 0)
        assert kinds(events)[-1] == "succeeded"
        assert clip(events) == undisturbed
        assert [event.resumed.reason for event in events if event.HasField("resumed")] == ["GATEWAY_DRAINED"]
        assert behaviour.calls.count("denoise") == 2
        assert behaviour.traces == {made.trace_id}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL that only the tests of this file use, and may stop."""
    with postgres_server() as running:
        yield running


async def seen(address: str, number: int) -> list[gp.GenerationEvent]:
    """What the Python client shows of one job, across whatever happens."""
    async with (
        Client(address) as client,
        aclosing(client.generate(gp.GenerationSpec(prompt=SPEC.prompt, seed=number))) as stream,
    ):
        return [event async for event in stream]


async def test_a_database_that_is_restarted_ends_every_job_once(tmp_path, undisturbed, server):
    behaviour = Behaviour(step_seconds=0.1)
    with empty_database(server.uri) as url:
        async with stages(behaviour) as at:
            stored = {"database_url": url, "artifacts_url": str(tmp_path / "artifacts")}
            async with gateway(at, behaviour, **stored) as running:
                async with asyncio.TaskGroup() as group:
                    jobs = [group.create_task(seen(running.address, seed)) for seed in (7, 8, 9)]
                    for steps in (3, 9):
                        await eventually(lambda steps=steps: len(behaviour.steps) >= steps)
                        await server.restart(away=0.5)
                for job in jobs:
                    events = [event for event in job.result() if event.sequence]
                    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
                    assert kinds(events)[-1] == "succeeded"
                    assert "GATEWAY_DRAINED" not in [event.resumed.reason for event in events]
                assert clip(jobs[0].result()) == undisturbed
                assert kinds(await running.generate(SPEC))[-1] == "succeeded"
        async with open_database(url) as database:
            assert await check_histories(database, kind, all_ended=True) == 4


async def test_callers_are_told_to_come_back_while_the_database_is_away(tmp_path, server):
    behaviour = Behaviour()
    with empty_database(server.uri) as url:
        async with stages(behaviour) as at:
            stored = {"database_url": url, "artifacts_url": str(tmp_path / "artifacts")}
            async with gateway(at, behaviour, **stored) as running:
                away = asyncio.create_task(server.restart(away=1.0))
                refused: list[grpc.StatusCode] = []
                while not away.done():
                    try:
                        await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))
                    except grpc.aio.AioRpcError as error:
                        refused.append(error.code())
                    await asyncio.sleep(0.05)
                assert refused
                assert set(refused) == {grpc.StatusCode.UNAVAILABLE}
                assert kinds(await running.generate(SPEC))[-1] == "succeeded"
