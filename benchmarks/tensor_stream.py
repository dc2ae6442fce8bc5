"""The suite's tensor stream against a bare `grpc.aio` byte stream of the same chunk size, between two processes.

Run as a module it is the server: `python -m benchmarks.tensor_stream` prints its address.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from benchmarks.measurement import Report, at_least, interleave, ratio
from rushes.v1 import tensors_pb2
from services.chassis.bundles import CHUNK_BYTES, Bundle, BundleReceiver, Tensor, chunks, pack, unpack

LATENTS_720P_FLOAT32 = (16, 21, 90, 160)
REPETITIONS_IN_A_CASE = 8
KIND = tensors_pb2.BUNDLE_KIND_LATENTS
SUITE = "/benchmarks.TensorStream/Suite"
BARE = "/benchmarks.TensorStream/Bare"
LIMIT = 4 * 2**20


def payload() -> bytes:
    """One 720p latent of 81 frames in float32, 19.4 MB."""
    count = 4
    for size in LATENTS_720P_FLOAT32:
        count *= size
    return pack(Bundle(tensors={"latents": Tensor(dtype="F32", shape=LATENTS_720P_FLOAT32, data=os.urandom(count))}))


async def serve() -> None:
    """Serve both streams until standard input is closed."""
    whole = payload()

    async def suite(_request: bytes, _context: Any) -> AsyncIterator[tensors_pb2.BundleChunk]:
        for chunk in chunks(KIND, whole):
            yield chunk

    async def bare(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for offset in range(0, len(whole), CHUNK_BYTES):
            yield whole[offset : offset + CHUNK_BYTES]

    server = grpc.aio.server(options=[("grpc.max_send_message_length", LIMIT), ("grpc.so_reuseport", 0)])
    handlers = {
        "Suite": grpc.unary_stream_rpc_method_handler(
            suite, response_serializer=tensors_pb2.BundleChunk.SerializeToString
        ),
        "Bare": grpc.unary_stream_rpc_method_handler(bare),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.TensorStream", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@asynccontextmanager
async def server_process() -> AsyncIterator[str]:
    """The server in a process of its own; yields its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.tensor_stream", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server was started without pipes")
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


async def measure(repeats: int = 15) -> Report:
    """Seconds to move one latent eight times, received, checked and put together, or just received."""
    options = [("grpc.max_receive_message_length", LIMIT)]
    async with server_process() as address, grpc.aio.insecure_channel(address, options=options) as channel:
        suite_stream = channel.unary_stream(SUITE, response_deserializer=tensors_pb2.BundleChunk.FromString)
        bare_stream = channel.unary_stream(BARE)

        async def suite() -> None:
            for _ in range(REPETITIONS_IN_A_CASE):
                receiver = BundleReceiver(KIND, 2**30)
                async for chunk in suite_stream(b""):
                    receiver.feed(chunk)
                unpack(receiver.payload())

        async def bare() -> None:
            for _ in range(REPETITIONS_IN_A_CASE):
                received = 0
                async for data in bare_stream(b""):
                    received += len(data)

        samples = await interleave({"rushes bundle": suite, "bare bytes": bare}, repeats)
    speed = ratio(samples, "bare bytes", "rushes bundle")
    return Report(
        title="Tensor stream: one 720p latent (19.4 MB), eight times, between two processes",
        figures=(at_least("speed against a bare grpc.aio byte stream of 1 MiB messages", speed, 0.8),),
        samples=samples,
    )


if __name__ == "__main__":
    asyncio.run(serve())
