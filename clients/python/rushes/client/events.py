"""One unbroken stream of events out of as many connections as it takes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import grpc

from rushes.client.errors import Aborted, DataLoss, Exhausted, RushesError, Unavailable, from_rpc_error
from rushes.client.retry import Patience, RetryPolicy
from rushes.v1.generation_pb2 import GenerateResponse, Generation, GenerationEvent, WatchGenerationResponse

TERMINAL_EVENTS = frozenset({"succeeded", "failed", "cancelled"})

MENDABLE_GAPS = 3
"""Missing events are asked for again so often: a server that lost them will not find them."""

EventCall = grpc.aio.UnaryStreamCall[Any, GenerateResponse] | grpc.aio.UnaryStreamCall[Any, WatchGenerationResponse]


class Cursor:
    """How far a watch has come: the generation, once it is known, and the sequence of its last durable event."""

    def __init__(self, generation_id: str = "", sequence: int = 0) -> None:
        self.generation_id = generation_id
        self.sequence = sequence

    def take(self, event: GenerationEvent) -> bool:
        """Advance over the event; False if the caller has had it before. Raises `DataLoss` if one is missing."""
        self.generation_id = self.generation_id or event.generation_id
        if event.sequence == 0:
            return True
        if event.sequence <= self.sequence:
            return False
        if event.sequence != self.sequence + 1:
            missing = f"{self.sequence + 1} to {event.sequence - 1}"
            raise DataLoss(f"events {missing} of generation {self.generation_id} are missing", reason="EVENTS_MISSING")
        self.sequence = event.sequence
        return True


class OpenStream(Protocol):
    """Opens a call whose events begin after the cursor."""

    def __call__(self, cursor: Cursor) -> EventCall: ...


def generation_at_end(event: GenerationEvent) -> Generation | None:
    """The generation that a terminal event carries; None for any other event."""
    kind = event.WhichOneof("event")
    if kind not in TERMINAL_EVENTS:
        return None
    ended: Generation = getattr(event, kind).generation
    return ended


async def unbroken(
    open_stream: OpenStream, cursor: Cursor, policy: RetryPolicy, on_reconnect: Callable[[RushesError], None] | None
) -> AsyncGenerator[GenerationEvent, None]:
    """Every event after the cursor up to the terminal one, each durable event exactly once.

    Lost connections are made again for as long as the policy's patience lasts; `on_reconnect` hears of each. Heartbeats
    only show that the stream is alive and are kept back. Raises the failure that cannot be mended by trying again.
    """
    patience = Patience(policy)
    gaps = 0
    while True:
        call = open_stream(cursor)
        opened = heard = time.monotonic()
        try:
            while (event := await _next_event(call, policy.silence_seconds)) is not None:
                heard = time.monotonic()
                if not cursor.take(event):
                    continue
                if event.sequence:
                    patience.renew()
                    gaps = 0
                kind = event.WhichOneof("event")
                if kind != "heartbeat":
                    yield event
                if kind in TERMINAL_EVENTS:
                    return
            raise Unavailable("the stream ended before the generation did", reason="STREAM_ENDED")  # noqa: TRY301 - the same mending as a failed call
        except grpc.aio.AioRpcError as failed:
            failure = from_rpc_error(failed)
        except (Unavailable, DataLoss) as failed:
            failure = failed
        finally:
            call.cancel()
        gaps += isinstance(failure, DataLoss)
        if gaps > MENDABLE_GAPS or not _mendable(failure, cursor):
            raise failure from None
        # A quiet stream that held for a while worked: its loss is not one more failure in a row.
        if heard - opened >= policy.longest_seconds:
            patience.renew()
        wait = patience.next_wait(failure)
        if on_reconnect is not None:
            on_reconnect(failure)
        await asyncio.sleep(wait)


async def _next_event(call: EventCall, silence_seconds: float) -> GenerationEvent | None:
    try:
        async with asyncio.timeout(silence_seconds):
            message = await call.read()
    except TimeoutError:
        raise Unavailable("the stream fell silent", reason="STREAM_SILENT") from None
    return message.event if isinstance(message, GenerateResponse | WatchGenerationResponse) else None


def _mendable(failure: RushesError, cursor: Cursor) -> bool:
    """Events that one connection missed may come on the next. A refused creation is the caller's to repeat."""
    if isinstance(failure, Exhausted):
        return bool(cursor.generation_id) and failure.retry_after_seconds is not None
    return isinstance(failure, Unavailable | Aborted | DataLoss)
