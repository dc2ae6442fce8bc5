"""One database, two dialects: SQLite with one writer, PostgreSQL with many."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.gateway.store import migrations
from services.gateway.store.notifications import CHANNEL, LocalNotifications, Notifications, PostgresNotifications

BUSY_TIMEOUT_SECONDS = 30.0
POOL_SIZE = 8
TOPICS = "topics"


class Database:
    """Connections for reading and for writing, and the bells that ring after a commit.

    On SQLite all writes of this process go through one connection, one after the other, each in `BEGIN IMMEDIATE`;
    readers have connections of their own, which the write-ahead log keeps apart from the writer.
    """

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine, notifications: Notifications) -> None:
        self._reader = reader
        self._writer = writer
        self.notifications = notifications
        self.postgres = writer.dialect.name == "postgresql"
        self._turn: contextlib.AbstractAsyncContextManager[Any] = (
            contextlib.nullcontext() if self.postgres else asyncio.Lock()
        )

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading, in a transaction."""
        async with self._reader.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""
        topics: list[str] = []
        async with self._turn, self._writer.begin() as connection:
            connection.info[TOPICS] = topics
            yield connection
        for topic in topics:
            self.notifications.ring(topic)

    async def ring(self, connection: AsyncConnection, *topics: str) -> None:
        """Ring `topics` in every gateway once the write transaction of `connection` is committed."""
        connection.info[TOPICS].extend(topics)
        if self.postgres:
            for topic in topics:
                await connection.execute(sqlalchemy.select(sqlalchemy.func.pg_notify(CHANNEL, topic)))

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""
        return (postgresql if self.postgres else sqlite).insert(table)


@contextlib.asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open `url` (`sqlite:///path` or `postgresql://...`), bring its tables up to date, and close it at the end."""
    parsed = make_url(url)
    async with contextlib.AsyncExitStack() as stack:
        if parsed.get_backend_name() == "sqlite":
            reader, writer = _sqlite_engines(parsed)
            notifications: Notifications = LocalNotifications()
        elif parsed.get_backend_name() == "postgresql":
            psycopg_url = parsed.set(drivername="postgresql+psycopg")
            writer = reader = create_async_engine(psycopg_url, pool_size=POOL_SIZE, pool_pre_ping=True)
            libpq = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
            notifications = await stack.enter_async_context(PostgresNotifications(libpq))
        else:
            raise ValueError(f"database {parsed.get_backend_name()}: must be sqlite or postgresql")
        stack.push_async_callback(writer.dispose)
        stack.push_async_callback(reader.dispose)
        async with writer.begin() as connection:
            await connection.run_sync(migrations.upgrade)
        yield Database(reader, writer, notifications)


def _sqlite_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    if not url.database or url.database == ":memory:":
        raise ValueError("database sqlite: needs a file, for readers beside the writer")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    driver = url.set(drivername="sqlite+aiosqlite")
    # The driver's own implicit transactions are switched off: the listeners below begin them.
    options = {"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}
    reader = create_async_engine(driver, pool_size=4, connect_args=options)
    writer = create_async_engine(driver, pool_size=1, max_overflow=0, connect_args=options)
    for engine, begin in ((reader, "BEGIN"), (writer, "BEGIN IMMEDIATE")):
        event.listen(engine.sync_engine, "connect", _set_pragmas)
        event.listen(engine.sync_engine, "begin", _beginner(begin))
    return reader, writer


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL: a commit survives the death of any process; after a loss of power the last moments may be missing, as
    # whole transactions.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _beginner(statement: str) -> Any:
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
