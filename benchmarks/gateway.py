"""One gateway under a crowd: 1,000 watchers of one job against a bare `grpc.aio` fan-out, and memory over 10,000 jobs.

The stages are the gateway tests' own, which answer at once: what is measured is the gateway. Run as a module it is the
server, `python -m benchmarks.gateway`, which prints two addresses: of the gateway, and of the bare fan-out.
"""

import asyncio
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.measurement import Report, at_most
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from tests.gateway.stage_servers import Behaviour
from tests.gateway.suite import suite

WATCHERS = 1_000
CHANNELS = 20
STEPS = 24
STEP_SECONDS = 0.5
JOBS, FIRST_JOBS, AT_ONCE = 10_000, 1_000, 16
BARE = "/benchmarks.FanOut/Watch"
PADDING = b"\0" * 64
"""As long as a step's event is."""


class _FanOut:
    """The least that can be: every watcher has a queue, and every tick goes into all of them."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._ticking: asyncio.Task[None] | None = None

    async def watch(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        while (message := await queue.get()) != b"":
            yield message

    async def _tick(self) -> None:
        for _ in range(STEPS):
            await asyncio.sleep(STEP_SECONDS)
            self._send(struct.pack("d", time.time()) + PADDING)
        self._send(b"")
        self._queues.clear()
        self._ticking = None

    def _send(self, message: bytes) -> None:
        for queue in self._queues:
            queue.put_nowait(message)


async def serve() -> None:
    """Serve both until standard input is closed."""
    behaviour = Behaviour(slots=AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        async with suite(Path(folder), behaviour) as running:
            server = grpc.aio.server()
            handler = grpc.unary_stream_rpc_method_handler(_FanOut().watch)
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("benchmarks.FanOut", {"Watch": handler}),)
            )
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            sys.stdout.write(f"{running.address} 127.0.0.1:{port}\n")
            sys.stdout.flush()
            while line := await asyncio.to_thread(sys.stdin.readline):
                behaviour.step_seconds = float(line)
            await server.stop(None)


@asynccontextmanager
async def _server() -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.gateway", stdin=pipe, stdout=pipe)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server was started without pipes")
    try:
        gateway, bare = (await process.stdout.readline()).decode().split()
        yield process, gateway, bare
    finally:
        process.stdin.close()
        await process.wait()


async def _crowd(address: str, watch: Any) -> list[float]:
    """Delays of every event at every watcher, of those that were sent when all watched."""
    delays: list[tuple[float, float]] = []
    began: list[float] = []
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(CHANNELS)
        ]

        async def one(channel: grpc.aio.Channel) -> None:
            first = True
            async for sent in watch(channel):
                if first:
                    began.append(time.time())
                    first = False
                delays.append((sent, time.time() - sent))

        async with asyncio.TaskGroup() as group:
            for number in range(WATCHERS):
                group.create_task(one(channels[number % CHANNELS]))
    return [delay for sent, delay in delays if sent > max(began)]


async def _watched(gateway: str) -> list[float]:
    async with grpc.aio.insecure_channel(gateway) as channel:
        spec = gp.GenerationSpec(prompt="watched", seed=time.time_ns() % 2**31)
        spec.sampling.steps = STEPS
        made = (await GenerationServiceStub(channel).CreateGeneration(gp.CreateGenerationRequest(spec=spec))).generation

    async def watch(own: grpc.aio.Channel) -> AsyncIterator[float]:
        async for response in GenerationServiceStub(own).WatchGeneration(gp.WatchGenerationRequest(id=made.id)):
            if response.event.HasField("step"):
                yield response.event.time.ToMicroseconds() / 1e6

    return await _crowd(gateway, watch)


async def _bare(address: str) -> list[float]:
    async def watch(own: grpc.aio.Channel) -> AsyncIterator[float]:
        async for message in own.unary_stream(BARE)(b""):
            yield struct.unpack_from("d", message)[0]

    return await _crowd(address, watch)


async def _jobs(address: str, count: int) -> None:
    """Make generations, several at once, each to its end."""
    left = iter(range(count))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GenerationServiceStub(channel)

        async def work() -> None:
            for _ in left:
                spec = gp.GenerationSpec(prompt="counted", seed=time.time_ns() % 2**31)
                spec.sampling.steps = 2
                async for _response in stub.Generate(gp.GenerateRequest(spec=spec)):
                    pass

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]


async def measure(repeats: int = 3) -> Report:
    """Both fan-outs in turns, then the jobs."""
    samples: dict[str, list[float]] = {"gateway: p99 delay": [], "bare: p99 delay": []}
    async with _server() as (process, gateway, bare):
        if process.stdin is None:
            raise RuntimeError("the server was started without pipes")
        process.stdin.write(f"{STEP_SECONDS}\n".encode())
        for _ in range(repeats):
            samples["gateway: p99 delay"].append(_p99(await _watched(gateway)))
            samples["bare: p99 delay"].append(_p99(await _bare(bare)))
        process.stdin.write(b"0\n")
        resident = psutil.Process(process.pid)
        await _jobs(gateway, FIRST_JOBS)
        early = resident.memory_info().rss
        began = time.perf_counter()
        await _jobs(gateway, JOBS - FIRST_JOBS)
        seconds = time.perf_counter() - began
        late = resident.memory_info().rss
    samples[f"one of {JOBS - FIRST_JOBS:,} jobs"] = [seconds / (JOBS - FIRST_JOBS)]
    pairs = zip(samples["gateway: p99 delay"], samples["bare: p99 delay"], strict=True)
    slower = statistics.median(ours / theirs for ours, theirs in pairs)
    return Report(
        title=f"Gateway: {WATCHERS:,} watchers of one job, and {JOBS:,} jobs on stages that answer at once",
        figures=(
            at_most("p99 delay of an event at a watcher, against a bare grpc.aio fan-out", slower, 1.5),
            at_most(f"resident memory after {JOBS:,} jobs against {FIRST_JOBS:,}", late / early, 1.05),
        ),
        samples=samples,
    )


if __name__ == "__main__":
    asyncio.run(serve())
