"""Retention: what ended long ago goes, and then the objects that no generation names any more."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from services.chassis.errors import RushesError
from services.chassis.logs import logger
from services.gateway.artifacts import KINDS, Artifacts
from services.gateway.outage import DATABASE_AWAY
from services.gateway.store.jobs import JobStore

WRITE_WINDOW = timedelta(hours=1)
"""An object that nothing names may be one whose row is about to be written, for so long."""


class Housekeeping:
    """Clears up, over and over."""

    def __init__(
        self,
        jobs: JobStore,
        artifacts: Artifacts,
        *,
        retention_seconds: float,
        interval_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._artifacts = artifacts
        self._retention_seconds = retention_seconds
        self._interval_seconds = interval_seconds
        self._clock = clock

    async def run(self) -> None:
        """Clear up until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.clear()
            except (RushesError, *DATABASE_AWAY) as failed:
                logger(__name__).warning("housekeeping.retry", error=type(failed).__name__)

    async def clear(self) -> None:
        """Delete what ended before the retention, and the objects that nothing names."""
        now = self._clock()
        expired = await self._jobs.expire(before=now - self._retention_seconds)
        before = datetime.fromtimestamp(now, UTC) - WRITE_WINDOW
        swept = 0
        for kind in KINDS:
            # In this order: a row that comes to name an old object has made it young before.
            found = await self._artifacts.older(kind, before=before)
            wanted = await self._jobs.artifact_keys() if found else set()
            for key in found:
                if key not in wanted:
                    await self._artifacts.delete(key)
                    swept += 1
        if expired or swept:
            logger(__name__).info("housekeeping", expired=expired, swept=swept)
