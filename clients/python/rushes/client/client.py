"""The asynchronous client of a gateway."""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from rushes.client.channel import Tls, is_local, open_channel
from rushes.client.download import DownloadCall, DownloadedVideo, mendable, save, stated, video_bytes
from rushes.client.errors import (
    Exhausted,
    FailedPrecondition,
    GenerationCancelled,
    GenerationFailed,
    RushesError,
    Unavailable,
    from_rpc_error,
)
from rushes.client.events import Cursor, EventCall, generation_at_end, unbroken
from rushes.client.frames import ClipFrame, frame_range, whole_frames
from rushes.client.retry import Patience, RetryPolicy
from rushes.client.trace import TraceContext
from rushes.v1 import catalog_pb2, generation_pb2, usage_pb2
from rushes.v1.catalog_pb2_grpc import CatalogServiceStub
from rushes.v1.generation_pb2 import Generation, GenerationEvent, GenerationSpec, GenerationState
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from rushes.v1.usage_pb2_grpc import UsageServiceStub

Answer = TypeVar("Answer")

Metadata = tuple[tuple[str, str], ...]


class Client:
    """Makes clips through a gateway, and mends lost connections by itself.

        async with Client("127.0.0.1:50051") as client:
            async for event in client.generate("a red circle moves left"):
                ...

    `address` is `host:port` or `unix:/path.sock`. An `api_key` goes only over TLS, to this machine, or where
    `allow_plaintext_key` says so. `timeout_seconds` bounds each call that is not a stream. Every method raises
    `RushesError`. `on_reconnect` hears why a stream had to be opened again.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        allow_plaintext_key: bool = False,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy | None = None,
        on_reconnect: Callable[[RushesError], None] | None = None,
    ) -> None:
        if api_key and tls is None and not is_local(address) and not allow_plaintext_key:
            raise ValueError("api_key: would travel in clear text; use tls, or say allow_plaintext_key=True")
        self.address = address
        self._credentials: Metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_seconds = timeout_seconds
        self._retry = retry or RetryPolicy()
        self._on_reconnect = on_reconnect
        self._channel = open_channel(address, tls=tls)
        self._generations = GenerationServiceStub(self._channel)
        self._catalog = CatalogServiceStub(self._channel)
        self._usage = UsageServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; streams that are open end."""
        await self._channel.close()

    async def ready(self, timeout_seconds: float = 5.0) -> None:
        """Wait until the gateway takes connections. Raises `Unavailable` after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._channel.channel_ready()
        except TimeoutError:
            raise Unavailable(f"no gateway answers at {self.address}", reason="GATEWAY_UNREACHABLE") from None

    async def generate(
        self,
        spec: GenerationSpec | str,
        *,
        request_id: str | None = None,
        cancel_on_disconnect: bool = False,
        prefer_cache: bool = False,
        trace: TraceContext | None = None,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Create a generation and yield its events to the terminal one, each once, whatever happens to the connection.

        With `cancel_on_disconnect`, leaving the iteration early cancels the generation; with `prefer_cache`, a clip of
        the same settings and seed that was made before is the answer. A refused creation raises at the first event.
        """
        request = generation_pb2.GenerateRequest(
            request_id=request_id or str(uuid.uuid4()),
            spec=_spec(spec),
            cancel_on_disconnect=cancel_on_disconnect,
            cache=_cache(prefer_cache),
        )
        metadata = self._metadata(trace)
        cursor = Cursor()
        ended = watching = False

        def open_stream(cursor: Cursor) -> EventCall:
            nonlocal watching
            if cursor.generation_id:
                watching = True
                return self._open_watch(cursor, metadata)
            return self._generations.Generate(request, metadata=metadata)

        try:
            async with aclosing(unbroken(open_stream, cursor, self._retry, self._on_reconnect)) as events:
                async for event in events:
                    ended = generation_at_end(event) is not None
                    yield event
        finally:
            # A stream that was opened again as a watch no longer cancels by going away.
            if cancel_on_disconnect and watching and not ended:
                with suppress(RushesError):
                    await self.cancel(cursor.generation_id)

    async def create(
        self,
        spec: GenerationSpec | str,
        *,
        request_id: str | None = None,
        prefer_cache: bool = False,
        trace: TraceContext | None = None,
    ) -> Generation:
        """Hand in a generation and return at once. The same `request_id` twice is one generation."""
        request = generation_pb2.CreateGenerationRequest(
            request_id=request_id or str(uuid.uuid4()), spec=_spec(spec), cache=_cache(prefer_cache)
        )
        metadata = self._metadata(trace)
        answer = await self._call(
            lambda: self._generations.CreateGeneration(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return answer.generation

    async def create_many(
        self, specs: Sequence[GenerationSpec | str], *, request_id: str | None = None, trace: TraceContext | None = None
    ) -> tuple[Generation, ...]:
        """Hand in 1 to 1000 generations, all or none; they run at the lowest class, behind everybody else's."""
        request = generation_pb2.CreateGenerationsRequest(
            request_id=request_id or str(uuid.uuid4()), specs=[_spec(spec) for spec in specs]
        )
        metadata = self._metadata(trace)
        answer = await self._call(
            lambda: self._generations.CreateGenerations(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return tuple(answer.generations)

    async def regenerate(
        self,
        generation_id: str,
        *,
        seed: int | None = None,
        request_id: str | None = None,
        trace: TraceContext | None = None,
    ) -> Generation:
        """Hand in the same settings again with another seed, drawn by the gateway if none is given."""
        request = generation_pb2.RegenerateGenerationRequest(
            id=generation_id, request_id=request_id or str(uuid.uuid4()), seed=seed
        )
        metadata = self._metadata(trace)
        answer = await self._call(
            lambda: self._generations.RegenerateGeneration(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return answer.generation

    async def delete(self, generation_id: str) -> None:
        """Remove a generation that has ended. Raises `FailedPrecondition` if it has not."""
        request = generation_pb2.DeleteGenerationRequest(id=generation_id)
        metadata = self._metadata(None)
        # Not tried again by itself: a repeated deletion that had worked would be told that there is nothing.
        try:
            await self._generations.DeleteGeneration(request, metadata=metadata, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as failed:
            raise from_rpc_error(failed) from None

    async def watch(
        self, generation_id: str, *, after_sequence: int = 0, trace: TraceContext | None = None
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a generation after the cursor to the terminal one, each once, across lost connections."""
        metadata = self._metadata(trace)
        cursor = Cursor(generation_id, after_sequence)
        stream = unbroken(lambda at: self._open_watch(at, metadata), cursor, self._retry, self._on_reconnect)
        async with aclosing(stream) as events:
            async for event in events:
                yield event

    async def wait(self, generation_id: str) -> Generation:
        """The finished generation. Raises `GenerationFailed` or `GenerationCancelled` if it ended so."""
        async with aclosing(self.watch(generation_id, after_sequence=0)) as events:
            async for event in events:
                ended = generation_at_end(event)
                if ended is not None:
                    return succeeded(ended)
        raise Unavailable("the stream ended before the generation did", reason="STREAM_ENDED")

    async def get(self, generation_id: str) -> Generation:
        """Read one generation."""
        request = generation_pb2.GetGenerationRequest(id=generation_id)
        metadata = self._metadata(None)
        answer = await self._call(
            lambda: self._generations.GetGeneration(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return answer.generation

    async def list(
        self, *, states: Iterable[GenerationState.ValueType] = (), page_size: int = 50
    ) -> AsyncGenerator[Generation, None]:
        """Every generation in the states (all if none are given), newest first; pages are read as they are needed."""
        wanted = tuple(states)
        metadata = self._metadata(None)
        token = ""
        while True:
            request = generation_pb2.ListGenerationsRequest(page_size=page_size, page_token=token, states=wanted)
            answer = await self._call(partial(self._page, request, metadata))
            for generation in answer.generations:
                yield generation
            token = answer.next_page_token
            if not token:
                return

    async def cancel(self, generation_id: str) -> Generation:
        """Stop a generation; returns how it ended. One that has ended already stays as it is."""
        request = generation_pb2.CancelGenerationRequest(id=generation_id)
        metadata = self._metadata(None)
        answer = await self._call(
            lambda: self._generations.CancelGeneration(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return answer.generation

    async def video(self, generation_id: str, *, offset: int = 0, output: str = "") -> AsyncGenerator[bytes, None]:
        """The bytes of a finished clip from the offset, across lost connections; from 0 their SHA-256 is checked.

        `output` names one of the other files that were made from the clip.
        """
        metadata = self._metadata(None)

        def open_download(at: int) -> DownloadCall:
            request = generation_pb2.DownloadVideoRequest(id=generation_id, offset=at, output=output)
            return self._generations.DownloadVideo(request, metadata=metadata)

        async with aclosing(video_bytes(open_download, offset, self._retry)) as pieces:
            async for data in pieces:
                yield data

    async def download(
        self,
        generation_id: str,
        destination: Path,
        *,
        output: str = "",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> DownloadedVideo:
        """Save a finished clip under the name and check its SHA-256; a call that was broken off is taken up again.

        `output` names one of the other files that were made from the clip. `on_progress` hears of bytes so far and in
        all. Raises `FailedPrecondition` if there is no clip, `NotFound` if there is no such file, OSError if it cannot
        be written.
        """
        generation = await self.get(generation_id)
        if not generation.HasField("video"):
            raise FailedPrecondition(f"generation {generation_id} has no clip", reason="NO_VIDEO")
        size_bytes, sha256 = stated(generation, output)
        pieces = save(
            size_bytes, sha256, destination, lambda offset: self.video(generation_id, offset=offset, output=output)
        )
        async with aclosing(pieces) as progress:
            async for done, total in progress:
                if on_progress is not None:
                    on_progress(done, total)
        return DownloadedVideo(path=destination, size_bytes=size_bytes, sha256=sha256)

    async def frames(
        self,
        generation_id: str,
        *,
        first: int = 0,
        count: int = 0,
        form: str = "png",
        quality: int = 0,
        max_edge: int = 0,
    ) -> AsyncGenerator[ClipFrame, None]:
        """Frames of a finished clip as pictures: `count` from `first` on, 0 for all that follow.

        `form` is `png`, `jpeg` or `webp`; `quality` (1 to 100) is of the last two; no edge exceeds `max_edge` if not 0.
        """
        wanted = frame_range(first, count, form, quality, max_edge)
        request = generation_pb2.DownloadFramesRequest(id=generation_id, range=wanted)
        call = self._generations.DownloadFrames(request, metadata=self._metadata(None))
        try:
            async for frame in whole_frames(call):
                yield frame
        except grpc.aio.AioRpcError as failed:
            raise from_rpc_error(failed) from None
        finally:
            call.cancel()

    async def models(self) -> tuple[catalog_pb2.Model, ...]:
        """The models that can be asked for, the default first."""
        metadata = self._metadata(None)
        answer = await self._call(
            lambda: self._catalog.ListModels(
                catalog_pb2.ListModelsRequest(), metadata=metadata, timeout=self._timeout_seconds
            )
        )
        return tuple(answer.models)

    async def limits(self) -> catalog_pb2.GetLimitsResponse:
        """What a request may ask for, whatever the model."""
        metadata = self._metadata(None)
        return await self._call(
            lambda: self._catalog.GetLimits(
                catalog_pb2.GetLimitsRequest(), metadata=metadata, timeout=self._timeout_seconds
            )
        )

    async def usage(
        self,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        bucket: dt.timedelta | None = None,
    ) -> tuple[usage_pb2.UsageBucket, ...]:
        """What the caller's generations used, oldest first; by default the last 30 days by the day.

        The times must know their time zone.
        """
        request = usage_pb2.GetUsageRequest()
        if start is not None:
            request.start_time.FromDatetime(start)
        if end is not None:
            request.end_time.FromDatetime(end)
        if bucket is not None:
            request.bucket.FromTimedelta(bucket)
        metadata = self._metadata(None)
        answer = await self._call(
            lambda: self._usage.GetUsage(request, metadata=metadata, timeout=self._timeout_seconds)
        )
        return tuple(answer.buckets)

    def _page(
        self, request: generation_pb2.ListGenerationsRequest, metadata: Metadata
    ) -> Awaitable[generation_pb2.ListGenerationsResponse]:
        return self._generations.ListGenerations(request, metadata=metadata, timeout=self._timeout_seconds)

    def _metadata(self, trace: TraceContext | None) -> Metadata:
        return (*self._credentials, (trace or TraceContext.new()).header())

    def _open_watch(self, cursor: Cursor, metadata: Metadata) -> EventCall:
        request = generation_pb2.WatchGenerationRequest(id=cursor.generation_id, after_sequence=cursor.sequence)
        return self._generations.WatchGeneration(request, metadata=metadata)

    async def _call(self, start: Callable[[], Awaitable[Answer]]) -> Answer:
        """Await a call that may be repeated: it reads, or it is idempotent. Only lost connections are tried again."""
        patience = Patience(self._retry)
        while True:
            try:
                return await start()
            except grpc.aio.AioRpcError as failed:
                failure = from_rpc_error(failed)
            if isinstance(failure, Exhausted) or not mendable(failure):
                raise failure from None
            await asyncio.sleep(patience.next_wait(failure))


def succeeded(generation: Generation) -> Generation:
    """The generation itself. Raises `GenerationFailed` or `GenerationCancelled` if it ended otherwise."""
    if generation.state == GenerationState.GENERATION_STATE_FAILED:
        raise GenerationFailed(generation)
    if generation.state == GenerationState.GENERATION_STATE_CANCELLED:
        raise GenerationCancelled(generation)
    return generation


def _cache(prefer: bool) -> generation_pb2.CacheMode.ValueType:
    return generation_pb2.CACHE_MODE_PREFER if prefer else generation_pb2.CACHE_MODE_UNSPECIFIED


def _spec(spec: GenerationSpec | str) -> GenerationSpec:
    return GenerationSpec(prompt=spec) if isinstance(spec, str) else spec
