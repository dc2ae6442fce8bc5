"""Bounded admission: a stage guards its slots and refuses at once when they are taken. Waiting is the gateway's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.errors import Exhausted


class Slots:
    """At most `capacity` holders at a time, on one event loop."""

    def __init__(self, capacity: int, retry_after_seconds: float) -> None:
        """`retry_after_seconds` is the advice to a refused caller. Raises `ValueError` for a capacity below 1."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.retry_after_seconds = retry_after_seconds
        self._in_use = 0

    @property
    def in_use(self) -> int:
        """How many slots are held."""
        return self._in_use

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold one slot for the block. Raises `Exhausted` (`SLOTS_BUSY`) at once when there is none."""
        if self._in_use >= self.capacity:
            raise Exhausted(
                f"All {self.capacity} slots of this service are busy.",
                reason="SLOTS_BUSY",
                retry_after_seconds=self.retry_after_seconds,
            )
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
