"""Bells: what wakes dispatchers and watchers after a commit, in this process or in every gateway of a database."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol, Self

import asyncpg
import structlog

CHANNEL = "rushes"
RECONNECT_SECONDS = 0.5


class Notifications(Protocol):
    """Rings topics. A bell may ring without need, and once for several causes: who is woken looks in the tables."""

    def subscribe(self, topic: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        """An event that is set whenever `topic` rings, until the context is left."""

    def ring(self, topic: str) -> None:
        """Ring `topic` in this process."""


class LocalNotifications:
    """Bells inside one process."""

    def __init__(self) -> None:
        self._bells: dict[str, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def subscribe(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever `topic` rings, until the context is left."""
        bell = asyncio.Event()
        self._bells.setdefault(topic, set()).add(bell)
        try:
            yield bell
        finally:
            bells = self._bells[topic]
            bells.discard(bell)
            if not bells:
                del self._bells[topic]

    def ring(self, topic: str) -> None:
        """Ring `topic` in this process."""
        for bell in self._bells.get(topic, ()):
            bell.set()

    def ring_all(self) -> None:
        """Ring every topic."""
        for topic in self._bells:
            self.ring(topic)


class PostgresNotifications(LocalNotifications):
    """Bells of every gateway on one PostgreSQL, by LISTEN on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        connection = await self._connect()
        self._task = asyncio.create_task(self._listen(connection), name="postgres-notifications")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(self._url)
        await connection.add_listener(CHANNEL, self._heard)
        return connection

    def _heard(self, _connection: object, _process: int, _channel: str, topic: object) -> None:
        self.ring(str(topic))

    async def _listen(self, connection: asyncpg.Connection | None) -> None:
        while True:
            try:
                if connection is None:
                    connection = await self._connect()
                    # What rang while nobody listened is made good by looking at everything once.
                    self.ring_all()
                await _end_of(connection)
                structlog.get_logger().warning("notifications.lost")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as refused:
                structlog.get_logger().warning("notifications.refused", error=type(refused).__name__)
            await asyncio.sleep(RECONNECT_SECONDS)
            connection = None


async def _end_of(connection: asyncpg.Connection) -> None:
    """Return when the connection has ended; end it when no longer waited for."""
    over = asyncio.Event()
    connection.add_termination_listener(lambda _: over.set())
    try:
        if not connection.is_closed():
            await over.wait()
    finally:
        connection.terminate()
