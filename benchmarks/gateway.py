"""One gateway under a crowd: 1,000 watchers of one job against a bare `grpc.aio` fan-out, and memory over 10,000 jobs.

The gateway is a process of its own over the gateway tests' stages, which answer at once. Both fan-outs send the same
messages to the same clients, which keep the bytes and read them afterwards.
"""

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import psutil

from benchmarks import fan_out
from benchmarks.measurement import Report, at_most
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from tests.gateway.processes import process
from tests.gateway.stage_servers import Behaviour, stages

WATCHERS = 1_000
CHANNELS = 20
STEPS = 24
STEP_SECONDS = 0.5
JOBS, JOBS_A_LOOK, AT_ONCE = 10_000, 1_000, 16
SETTINGS = {"checkpoint_seconds": 30, "lease_seconds": 60, "log_level": "warning"}
WATCH = "/rushes.v1.GenerationService/WatchGeneration"


@asynccontextmanager
async def bare() -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Address of the bare fan-out, and what makes it begin."""
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.fan_out", stdin=PIPE, stdout=PIPE)
    stdin, stdout = server.stdin, server.stdout
    if stdin is None or stdout is None:
        raise RuntimeError("the server was started without pipes")
    try:
        address = (await stdout.readline()).decode().strip()
        yield address, lambda: stdin.write(f"{STEPS} {STEP_SECONDS}\n".encode())
    finally:
        stdin.close()
        await server.wait()


async def crowd(address: str, method: str, request: bytes, *, begin: Callable[[], None]) -> list[float]:
    """Delays of every step's event at every watcher, in seconds; `begin` is called once all of them watch."""
    watching = asyncio.Semaphore(0)
    async with AsyncExitStack() as stack:
        stack.enter_context(_without_collections())
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(CHANNELS)
        ]
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(follow(channels[number % CHANNELS], method, request, watching))
                for number in range(WATCHERS)
            ]
            for _ in watches:
                await watching.acquire()
            begin()
    return [delay for watch in watches for delay in delays_of(watch.result())]


@contextmanager
def _without_collections() -> Iterator[None]:
    """No rounds of the garbage collector here: each would look like a delay of whoever sends."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def follow(
    channel: grpc.aio.Channel, method: str, request: bytes, watching: asyncio.Semaphore
) -> list[tuple[float, bytes]]:
    """Every message of a stream with the time at which it came; `watching` is released at the first."""
    seen: list[tuple[float, bytes]] = []
    async for message in channel.unary_stream(method)(request):
        seen.append((time.time(), message))
        if len(seen) == 1:
            watching.release()
    return seen


def delays_of(seen: list[tuple[float, bytes]]) -> list[float]:
    """Delays of the steps among the messages, in seconds.

    Without the last step, on whose heels the events of a job's end follow.
    """
    events = ((now, gp.WatchGenerationResponse.FromString(message).event) for now, message in seen)
    return [
        now - event.time.ToMicroseconds() / 1e6 for now, event in events if 0 < event.step.total > event.step.index + 1
    ]


async def watched(gateway: str, behaviour: Behaviour) -> list[float]:
    """The delays of a job whose steps begin when everybody watches."""
    behaviour.gate.clear()
    behaviour.step_seconds = STEP_SECONDS
    async with grpc.aio.insecure_channel(gateway) as channel:
        request = gp.CreateGenerationRequest(spec=_spec("watched", STEPS))
        made = (await GenerationServiceStub(channel).CreateGeneration(request)).generation
    asked = gp.WatchGenerationRequest(id=made.id).SerializeToString()
    return await crowd(gateway, WATCH, asked, begin=behaviour.gate.set)


async def make_jobs(address: str, count: int) -> None:
    """Make generations, several at once, each watched to its end."""
    left = iter(range(count))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GenerationServiceStub(channel)

        async def work() -> None:
            for _ in left:
                async for _response in stub.Generate(gp.GenerateRequest(spec=_spec("counted", 2))):
                    pass

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())


def _spec(prompt: str, steps: int) -> gp.GenerationSpec:
    spec = gp.GenerationSpec(prompt=prompt, seed=time.time_ns() % 2**31)
    spec.sampling.steps = steps
    spec.previews.every_steps = 0
    return spec


def p99(delays: list[float]) -> float:
    """The delay that 99 of 100 do not exceed."""
    return statistics.quantiles(delays, n=100)[98]


async def measure(repeats: int = 3) -> Report:
    """Both fan-outs in turns, then the jobs."""
    delays: dict[str, list[float]] = {"gateway: p99 delay": [], "bare: p99 delay": []}
    behaviour = Behaviour(slots=AT_ONCE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            stages(behaviour) as at,
            process(at, f"sqlite:///{folder}/rushes.db", folder, **SETTINGS) as (running, gateway),
            bare() as (other, begin),
        ):
            turns: dict[str, Callable[[], Awaitable[list[float]]]] = {
                "gateway: p99 delay": lambda: watched(gateway, behaviour),
                "bare: p99 delay": lambda: crowd(other, fan_out.METHOD, b"", begin=begin),
            }
            for repeat in range(repeats):
                for name_of_turn in sorted(turns, reverse=repeat % 2 == 0):
                    delays[name_of_turn].append(p99(await turns[name_of_turn]()))
            behaviour.step_seconds = 0.0
            resident, seconds = psutil.Process(running.pid), []
            memory = []
            for _ in range(JOBS // JOBS_A_LOOK):
                began = time.perf_counter()
                await make_jobs(gateway, JOBS_A_LOOK)
                seconds.append((time.perf_counter() - began) / JOBS_A_LOOK)
                memory.append(resident.memory_info().rss)
    pairs = zip(delays["gateway: p99 delay"], delays["bare: p99 delay"], strict=True)
    slower = statistics.median(ours / theirs for ours, theirs in pairs)
    return Report(
        title=f"Gateway: {WATCHERS:,} watchers of one job, and {JOBS:,} jobs on stages that answer at once",
        figures=(
            at_most("p99 delay of an event at a watcher, against a bare grpc.aio fan-out", slower, 1.5),
            at_most(
                f"most resident memory up to {JOBS:,} jobs, against {JOBS_A_LOOK:,}",
                max(memory) / memory[0],
                1.05,
                note=f"{memory[0] / 2**20:.0f} to {max(memory) / 2**20:.0f} MiB",
            ),
        ),
        samples={**delays, "a job": seconds},
    )
