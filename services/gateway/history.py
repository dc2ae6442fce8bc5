"""Writing a generation's events behind the chain's back: in order, many in one transaction, never twice."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from services.chassis.logs import logger
from services.gateway.outage import DATABASE_AWAY
from services.gateway.store.job import Lease
from services.gateway.store.leases import NO_CHANGES, LeaseStore

PENDING = 64
RETRY_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One event, and the changes of the job that are written with it."""

    payload: bytes
    changes: Mapping[str, object]


Recording: TypeAlias = Callable[[], Awaitable[Entry]]
"""Does what has to be done before an event may be written, and gives the event."""


class History:
    """The events of one lease. Whoever reads the stages is held up only when `PENDING` events wait to be written.

    A database that does not answer is tried again; the fence ends that when the lease is lost.
    """

    def __init__(self, leases: LeaseStore, lease: Lease, last_sequence: int) -> None:
        self._leases = leases
        self._lease = lease
        self._last = last_sequence
        self._waiting: deque[Entry | Recording] = deque()
        self._filled = asyncio.Event()
        self._written = asyncio.Event()
        self._closing = False
        self._failure: BaseException | None = None
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write(), name=f"history-{self._lease.id}")
        return self

    async def __aexit__(self, *raised: Any) -> None:
        """Write what waits, also when the work was cancelled: what has happened belongs to the history."""
        self._closing = True
        self._filled.set()
        if self._writer is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._writer)
            await self._writer
        if raised[0] is None:
            self._check()

    async def append(self, payload: bytes, changes: Mapping[str, object] = NO_CHANGES) -> None:
        """Note one event and changes of the job. Raises `LeaseLost`, and whatever a recording raised."""
        await self._note(Entry(payload=payload, changes=changes))

    async def record(self, recording: Recording) -> None:
        """Note an event that something has to be done for first, which goes on beside the work.

        Events noted later are written after it. One recording waits at a time: it may hold much memory. Raises as
        `append` does.
        """
        while self._failure is None and any(callable(one) for one in self._waiting):
            await self._written.wait()
        await self._note(recording)

    async def _note(self, noted: Entry | Recording) -> None:
        self._check()
        self._waiting.append(noted)
        self._filled.set()
        if len(self._waiting) >= PENDING:
            await self.flush()

    async def flush(self) -> None:
        """Wait until everything noted is written. Raises as `append` does."""
        while self._waiting and self._failure is None:
            await self._written.wait()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _write(self) -> None:
        while not (self._closing and not self._waiting):
            await self._filled.wait()
            self._filled.clear()
            lost = False
            if self._waiting:
                try:
                    await self._write_some()
                except Exception as failed:  # noqa: BLE001 - it is the appender's to raise
                    self._failure, lost = failed, True
                    self._waiting.clear()
                if self._waiting:
                    self._filled.set()
            self._written.set()
            self._written = asyncio.Event()
            if lost:
                return

    async def _write_some(self) -> None:
        """Write a recording alone, or all entries before the next one in one transaction."""
        first = self._waiting[0]
        if callable(first):
            try:
                entries = [await first()]
            except Exception as failed:  # noqa: BLE001 - it is the appender's to raise
                # What happened beside it is written all the same.
                self._failure = failed
                self._waiting.popleft()
                return
        else:
            entries = []
            for one in self._waiting:
                if callable(one):
                    break
                entries.append(one)
        changes = {name: value for entry in entries for name, value in entry.changes.items()}
        await self._append([entry.payload for entry in entries], changes)
        for _ in entries:
            self._waiting.popleft()

    async def _append(self, payloads: list[bytes], changes: Mapping[str, object]) -> None:
        while True:
            try:
                self._last = await self._leases.append(self._lease, payloads, after=self._last, changes=changes)
            except DATABASE_AWAY as failed:
                logger(__name__).warning("history.retry", generation=self._lease.id, error=type(failed).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
