"""Many viewers in one process, to be killed at once: `python -m tests.gateway.viewers ADDRESS GENERATION COUNT`."""

import asyncio
import contextlib
import sys
from contextlib import AsyncExitStack

import grpc

from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub

STREAMS_PER_CONNECTION = 50


async def view(address: str, generation_id: str, count: int) -> None:
    """Open every stream, say `watching` once each has given an event, and read on."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        begun = asyncio.Semaphore(0)

        async def read(stub: GenerationServiceStub) -> None:
            seen = False
            while not seen:
                # A server under such a load may leave a call waiting until gRPC gives it up: it is made again.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for _ in stub.WatchGeneration(gp.WatchGenerationRequest(id=generation_id)):
                        if not seen:
                            begun.release()
                        seen = True

        for _ in range(0, count, STREAMS_PER_CONNECTION):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(min(count, STREAMS_PER_CONNECTION)):
                group.create_task(read(GenerationServiceStub(channel)))
        for _ in range(count):
            await begun.acquire()
        sys.stdout.write("watching\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(view(sys.argv[1], sys.argv[2], int(sys.argv[3])))
