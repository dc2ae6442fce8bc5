"""Writing a generation's events behind the chain's back: in order, many in one transaction, never twice."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Self

from services.chassis.logs import logger
from services.gateway.outage import DATABASE_AWAY
from services.gateway.store.job import Lease
from services.gateway.store.leases import NO_CHANGES, LeaseStore

PENDING = 64
RETRY_SECONDS = 0.25


class History:
    """The events of one lease. Whoever reads the stages is held up only when `PENDING` events wait to be written.

    A database that does not answer is tried again; the fence ends that when the lease is lost.
    """

    def __init__(self, leases: LeaseStore, lease: Lease, last_sequence: int) -> None:
        self._leases = leases
        self._lease = lease
        self._last = last_sequence
        self._payloads: list[bytes] = []
        self._changes: dict[str, object] = {}
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
        """Note one event and changes of the job. Raises `LeaseLost`."""
        self._check()
        self._payloads.append(payload)
        self._changes.update(changes)
        self._filled.set()
        if len(self._payloads) >= PENDING:
            await self.flush()

    async def flush(self) -> None:
        """Wait until everything noted is written. Raises `LeaseLost`."""
        while self._payloads and self._failure is None:
            written = self._written
            await written.wait()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _write(self) -> None:
        while not (self._closing and not self._payloads):
            await self._filled.wait()
            self._filled.clear()
            count, changes = len(self._payloads), self._changes
            if count:
                self._changes = {}
                try:
                    await self._append(self._payloads[:count], changes)
                except Exception as failed:  # noqa: BLE001 - it is the appender's to raise
                    self._failure = failed
                    self._payloads.clear()
                del self._payloads[:count]
                if self._payloads:
                    self._filled.set()
            self._written.set()
            self._written = asyncio.Event()
            if self._failure is not None:
                return

    async def _append(self, payloads: list[bytes], changes: Mapping[str, object]) -> None:
        while True:
            try:
                self._last = await self._leases.append(self._lease, payloads, after=self._last, changes=changes)
            except DATABASE_AWAY as failed:
                logger(__name__).warning("history.retry", generation=self._lease.id, error=type(failed).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
