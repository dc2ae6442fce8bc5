"""Disks without room. The kernel refuses the gateway's writes: no file of the process may grow past a limit (EFBIG)."""

import asyncio
import resource
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from rushes.client import Client
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.gateway.store.database import open_database
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories
from tests.gateway.processes import process
from tests.gateway.stage_servers import Behaviour, stages
from tests.gateway.suite import clip, eventually, kind, kinds

SPEC = gp.GenerationSpec(prompt="a red circle", seed=7)
UNLIMITED = resource.RLIM_INFINITY


@contextmanager
def full(gateway: Process, *, at_bytes: int) -> Iterator[None]:
    """Every write past so many bytes of a file fails, in the gateway only."""
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (at_bytes, UNLIMITED))
    try:
        yield
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))


@asynccontextmanager
async def stub(address: str) -> AsyncIterator[GenerationServiceStub]:
    """A caller."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield GenerationServiceStub(channel)


async def generated(caller: GenerationServiceStub) -> list[gp.GenerationEvent]:
    """Every event of a new generation."""
    return [response.event async for response in caller.Generate(gp.GenerateRequest(spec=SPEC))]


def stored(folder: Path) -> list[str]:
    """The kinds and names of all files below the artifacts."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize(("room", "kept"), [(0, []), (1000, ["checkpoints", "conditioning"])])
async def test_a_clip_that_does_not_fit_fails_its_generation_and_is_not_there_by_half(tmp_path, postgres, room, kept):
    folder = tmp_path / "artifacts"
    with empty_database(postgres) as url:
        async with stages(Behaviour()) as at, process(at, url, tmp_path) as (gateway, address), stub(address) as caller:
            with full(gateway, at_bytes=room):
                failed = (await generated(caller))[-1].failed.generation
                assert (failed.failure.stage, failed.failure.reason) == ("gateway", "ARTIFACTS_FULL")
                assert failed.failure.retryable
                assert sorted({name.split("/")[0] for name in stored(folder)}) == kept
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    [_ async for _ in caller.DownloadVideo(gp.DownloadVideoRequest(id=failed.id))]
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            events = await generated(caller)
            assert kinds(events)[-1] == "succeeded"
            request = gp.DownloadVideoRequest(id=events[-1].generation_id)
            assert b"".join([piece.data async for piece in caller.DownloadVideo(request)]) == clip(events)
        async with open_database(url) as database:
            assert await check_histories(database, kind, all_ended=True) == 2


async def test_a_history_that_cannot_be_written_holds_the_job_until_there_is_room(tmp_path):
    url = f"sqlite:///{tmp_path}/rushes.db"
    behaviour = Behaviour(step_seconds=0.3)
    async with stages(behaviour) as at, process(at, url, tmp_path, checkpoint_seconds=30) as (gateway, address):

        async def job() -> list[gp.GenerationEvent]:
            async with Client(address) as client, aclosing(client.generate(SPEC)) as events:
                return [event async for event in events]

        begun = asyncio.create_task(job())
        await eventually(lambda: len(behaviour.steps) >= 2)
        async with stub(address) as caller:
            with full(gateway, at_bytes=0):
                await eventually(lambda: len(behaviour.steps) >= 5)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await caller.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert gateway.returncode is None
            events = await begun
            assert kinds(events)[-1] == "succeeded"
            again = await generated(caller)
            assert kinds(again)[-1] == "succeeded"
            assert clip(again) == clip(events)
    async with open_database(url) as database:
        assert await check_histories(database, kind, all_ended=True) == 2
