"""The request stream of a call, read so that a reader may be cancelled."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Check: TypeAlias = Callable[[Any], None]

_MAX_DRAINED: Final = 256
_PAUSE_SECONDS: Final = 0.25


class Incoming:
    """The messages that a client streams, each checked, as an async iterator.

    Each read has a task of its own that no reader cancels: grpc.aio loses the memory of a read that is cancelled under
    way (grpc#43360), and the message with it. The next reader takes up the read that the last one left.
    """

    def __init__(self, context: Context) -> None:
        """Reads from `context`; the only one that does."""
        self._context = context
        self._checks: list[Check] = []
        self._reading: asyncio.Task[Any] | None = None
        self._ended = False

    def add_check(self, check: Check) -> None:
        """Pass every message from here on to `check`, which raises to refuse it."""
        self._checks.append(check)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        message = await asyncio.shield(self._read())
        self._reading = None
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        for check in self._checks:
            check(message)
        return message

    async def drain(self) -> None:
        """Drop what the client is still sending, until it ends, pauses for a moment or has been more than enough.

        Before a refusal: a grpc.aio client whose write fails while the status is on its way reports INTERNAL instead.
        """
        for _ in range(_MAX_DRAINED):
            if self._ended:
                return
            reading = self._read()
            done, _ = await asyncio.wait({reading}, timeout=_PAUSE_SECONDS)
            if not done:
                return
            self._reading = None
            self._ended = reading.result() is grpc.aio.EOF

    def _read(self) -> asyncio.Task[Any]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._context.read())
            self._reading.add_done_callback(_collect)
        return self._reading


def _collect(reading: asyncio.Task[Any]) -> None:
    """Look at how a read ended: the one that is under way when its call ends has nobody else to do so."""
    if not reading.cancelled():
        reading.exception()
