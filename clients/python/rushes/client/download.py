"""A clip's bytes out of as many connections as it takes, checked against the clip's SHA-256."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from rushes.client.errors import Aborted, DataLoss, Exhausted, NotFound, RushesError, Unavailable, from_rpc_error
from rushes.client.retry import Patience, RetryPolicy
from rushes.v1.generation_pb2 import DownloadVideoResponse, Generation

DownloadCall = grpc.aio.UnaryStreamCall[Any, DownloadVideoResponse]

READ_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadedVideo:
    """A clip on this machine: where, how many bytes, and their SHA-256 in hexadecimal."""

    path: Path
    size_bytes: int
    sha256: str


async def video_bytes(
    open_download: Callable[[int], DownloadCall], offset: int, policy: RetryPolicy
) -> AsyncGenerator[bytes, None]:
    """The bytes of a clip from the offset to its end, each once, across lost connections.

    From offset 0 the whole is checked against the SHA-256 that the server states. Raises `DataLoss` on a hole or a
    wrong hash, and any failure that cannot be mended by trying again.
    """
    digest = hashlib.sha256()
    whole = offset == 0
    patience = Patience(policy)
    while True:
        call = open_download(offset)
        try:
            total, stated = None, ""
            while (message := await _next_message(call, policy.silence_seconds)) is not None:
                if message.offset != offset:
                    raise DataLoss(
                        f"the clip's byte {offset} is missing: the server sent byte {message.offset}",
                        reason="BYTES_MISSING",
                    )
                total, stated = message.total_size, message.sha256
                offset += len(message.data)
                patience.renew()
                if message.data:
                    digest.update(message.data)
                    yield message.data
            if offset != total:
                raise Unavailable("the stream ended before the clip did", reason="STREAM_ENDED")  # noqa: TRY301 - as above
        except grpc.aio.AioRpcError as failed:
            failure = from_rpc_error(failed)
        except Unavailable as failed:
            failure = failed
        else:
            if whole and digest.hexdigest() != stated:
                raise DataLoss("the clip's bytes do not match its SHA-256", reason="HASH_MISMATCH")
            return
        finally:
            call.cancel()
        if not mendable(failure):
            raise failure from None
        await asyncio.sleep(patience.next_wait(failure))


def stated(generation: Generation, output: str) -> tuple[int, str]:
    """Size and SHA-256 of the clip, or of the file of that name. Raises `NotFound` if there is none."""
    if not output:
        return generation.video.size_bytes, generation.video.sha256
    for file in generation.video.outputs:
        if file.name == output:
            return file.size_bytes, file.sha256
    raise NotFound(f"generation {generation.id} has no file {output}", reason="OUTPUT_NOT_FOUND")


async def save(
    size_bytes: int, sha256: str, destination: Path, read_from: Callable[[int], AsyncIterator[bytes]]
) -> AsyncGenerator[tuple[int, int], None]:
    """Write a clip to the destination, yielding (bytes so far, bytes in all); go on where an earlier call stopped.

    The bytes gather in `<destination>.part` and get their name when their SHA-256 is the clip's. A part that turns out
    to belong to another clip is thrown away and read again once. Raises `DataLoss` if that does not help, and OSError.
    """
    part = destination.with_name(destination.name + ".part")
    kept = await asyncio.to_thread(_size, part)
    for start in (kept, 0) if 0 < kept <= size_bytes else (0,):
        digest = await asyncio.to_thread(_digest, part) if start else hashlib.sha256()
        written = start
        with await asyncio.to_thread(part.open, "ab" if start else "wb") as file:
            if written < size_bytes:
                with suppress(DataLoss):
                    async for data in read_from(start):
                        await asyncio.to_thread(file.write, data)
                        digest.update(data)
                        written += len(data)
                        yield written, size_bytes
        if digest.hexdigest() == sha256:
            await asyncio.to_thread(part.replace, destination)
            yield written, size_bytes
            return
    await asyncio.to_thread(part.unlink)
    raise DataLoss("the clip's bytes do not match its SHA-256", reason="HASH_MISMATCH")


async def _next_message(call: DownloadCall, silence_seconds: float) -> DownloadVideoResponse | None:
    try:
        async with asyncio.timeout(silence_seconds):
            message = await call.read()
    except TimeoutError:
        raise Unavailable("the stream fell silent", reason="STREAM_SILENT") from None
    return message if isinstance(message, DownloadVideoResponse) else None


def mendable(failure: RushesError) -> bool:
    """True if the same call may succeed a little later."""
    if isinstance(failure, Exhausted):
        return failure.retry_after_seconds is not None
    return isinstance(failure, Unavailable | Aborted)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest
