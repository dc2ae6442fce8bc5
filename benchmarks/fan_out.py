"""The least that a fan-out of events can be: `grpc.aio`, a queue a watcher, and the same bytes for all of them.

Run as a module it is the server: it prints its address, and sends its ticks when a line comes.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from rushes.v1 import denoiser_pb2
from rushes.v1 import generation_pb2 as gp

METHOD = "/benchmarks.FanOut/Watch"


def tick(step: int, total: int) -> bytes:
    """A message as the gateway sends it for a step, with the time of now."""
    event = gp.GenerationEvent(
        sequence=step + 1, generation_id="0" * 32, step=denoiser_pb2.StepProgress(index=step, total=total, seconds=0.1)
    )
    event.time.FromMicroseconds(round(time.time() * 1e6))
    return gp.WatchGenerationResponse(event=event).SerializeToString()


class _FanOut:
    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()

    async def watch(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        yield gp.WatchGenerationResponse(event=gp.GenerationEvent(queued=gp.QueuedEvent())).SerializeToString()
        while message := await queue.get():
            yield message

    async def send(self, steps: int, seconds: float) -> None:
        for step in range(steps):
            await asyncio.sleep(seconds)
            self._send(tick(step, steps))
        self._send(b"")
        self._queues.clear()

    def _send(self, message: bytes) -> None:
        for queue in self._queues:
            queue.put_nowait(message)


async def serve() -> None:
    """Serve until standard input is closed; a line `steps seconds` sends so many ticks."""
    fan_out = _FanOut()
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(fan_out.watch)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.FanOut", {"Watch": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    while line := await asyncio.to_thread(sys.stdin.readline):
        steps, seconds = line.split()
        await fan_out.send(int(steps), float(seconds))
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve())
