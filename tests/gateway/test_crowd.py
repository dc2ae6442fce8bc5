"""A crowd of viewers that goes away in one moment: nothing of it stays behind, and the work goes on."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import grpc
import psutil
import pytest

from rushes.v1 import generation_pb2 as gp
from rushes.v1 import sampling_pb2
from tests.gateway.stage_servers import Behaviour
from tests.gateway.suite import Suite, eventually, kinds, suite

SPEC = gp.GenerationSpec(prompt="a red circle", seed=7, sampling=sampling_pb2.SamplingSettings(steps=100))


async def come_and_go(running: Suite, generation_id: str, count: int) -> None:
    """`kill -9` of one process that watches a generation so many times over."""
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway.viewers", running.address, generation_id, str(count), stdout=PIPE
    )
    try:
        assert await crowd.stdout.readline() == b"watching\n"
    finally:
        crowd.kill()
        await crowd.wait()


async def crowds_come_and_go(folder: Path, *, count: int, rounds: int, step_seconds: float) -> None:
    """After each crowd there are as many tasks (give or take a call) and connections as before, and no more memory."""
    behaviour = Behaviour(step_seconds=step_seconds, slots=1)
    this = psutil.Process()
    async with suite(folder, behaviour) as running:
        made = (await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
        await eventually(lambda: behaviour.steps)
        tasks, connections = len(asyncio.all_tasks()), len(this.net_connections("tcp"))
        resident = []
        for _ in range(rounds):
            await come_and_go(running, made.id, count)
            await eventually(
                lambda: len(asyncio.all_tasks()) <= tasks + 10 and len(this.net_connections("tcp")) <= connections
            )
            resident.append(this.memory_info().rss)
        assert resident[-1] <= 1.05 * resident[0]
        steps = len(behaviour.steps)
        await eventually(lambda: len(behaviour.steps) > steps)
        behaviour.step_seconds = 0.0
        events = [
            response.event async for response in running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made.id))
        ]
        assert kinds(events)[-1] == "succeeded"
        assert kinds(events).count("step") == 100
        assert kinds(await running.generate())[-1] == "succeeded"


async def test_a_slow_reader_gets_everything_and_holds_up_neither_the_job_nor_a_fast_one(tmp_path):
    behaviour = Behaviour()
    behaviour.gate.clear()
    async with suite(tmp_path, behaviour) as running:
        made = (await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
        request = gp.WatchGenerationRequest(id=made.id)
        slow = running.stub.WatchGeneration(request)
        seen = [(await slow.read()).event]
        behaviour.gate.set()
        fast = [response.event async for response in running.stub.WatchGeneration(request)]
        assert kinds(fast)[-1] == "succeeded"
        while (response := await slow.read()) is not grpc.aio.EOF:
            seen.append(response.event)
        durable = [[event for event in events if event.sequence] for events in (seen, fast)]
        assert durable[0] == durable[1]


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_reader_of_one_event_a_second_gets_everything(tmp_path):
    async with suite(tmp_path) as running:
        made = (await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=SPEC))).generation
        seen = []
        async for response in running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made.id)):
            seen.extend([response.event] if response.event.sequence else [])
            await asyncio.sleep(1.0)
        again = running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made.id))
        assert seen == [response.event async for response in again]


async def test_five_hundred_viewers_that_go_at_once_leave_nothing_behind(tmp_path):
    await crowds_come_and_go(tmp_path, count=500, rounds=2, step_seconds=2.0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_five_thousand_viewers_that_go_at_once_leave_nothing_behind(tmp_path):
    # In debug mode each callback keeps the stack that it came from, which takes more time than so many viewers leave.
    asyncio.get_running_loop().set_debug(False)
    await crowds_come_and_go(tmp_path, count=5000, rounds=2, step_seconds=10.0)
