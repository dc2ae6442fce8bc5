"""The store in a SQLite file."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
import structlog
from sqlalchemy import Executable, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, CursorResult, Engine
from sqlalchemy.exc import OperationalError

from services.gateway.store import migrations
from services.gateway.store.notifications import LocalNotifications, Notifications

BUSY_SECONDS = 30.0
BUSY_POLL_SECONDS = 0.005
CHECKPOINT_SECONDS = 5.0
LONG_LOG_BYTES = 64 * 2**20
"""From so many on the write-ahead log is folded to its end and emptied."""
CACHE_KIB = 400
LISTEN_SECONDS = 0.025
"""How often a SQLite file is looked at for what other processes have written."""


class InlineConnection:
    """A connection of SQLite, run where it is called.

    A statement on a local file takes tens of microseconds, and each of the driver's hops to a thread and back takes as
    long. What can take longer is kept off the event loop: the write lock is waited for without blocking, and the
    write-ahead log is folded into the file by a thread.
    """

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self.topics: list[str] = []

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement."""
        return self._connection.execute(statement, parameters)

    async def run(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement."""
        return self._connection.execute(statement, parameters).all()

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Run one statement."""
        self._connection.execute(statement, parameters)

    def ring(self, *topics: str) -> None:
        """Ring `topics` in this process once the write transaction is committed; others see that the file changed."""
        self.topics.extend(topics)


class SqliteDatabase:
    """A SQLite file: one writer of this process at a time, in `BEGIN IMMEDIATE`, beside readers of snapshots."""

    postgres = False

    def __init__(self, reader: Engine, writer: Engine, log: Path) -> None:
        """`log` is the write-ahead log of the file."""
        self._reader = reader
        self._writer = writer
        self._log = log
        self._log_is_long = asyncio.Event()
        self._turn = asyncio.Lock()
        self._bells = LocalNotifications()
        self.notifications: Notifications = self._bells

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[InlineConnection]:
        """A connection in a read transaction."""
        with self._reader.connect() as connection:
            yield InlineConnection(connection)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[InlineConnection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""
        async with self._turn, self._begun() as begun:
            connection = InlineConnection(begun)
            yield connection
        if self._log.stat().st_size > LONG_LOG_BYTES:
            self._log_is_long.set()
        for topic in connection.topics:
            self.notifications.ring(topic)

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""
        return sqlite.insert(table)

    async def migrate(self) -> None:
        """Bring the tables up to date."""
        async with self._begun() as connection:
            migrations.upgrade(connection)

    async def listen_for_ever(self, known: int) -> None:
        """Ring every bell when another process has written: the number that SQLite keeps for its writer then changes.

        What this process writes goes through the writer too, and leaves the number as it is.
        """
        while True:
            await asyncio.sleep(LISTEN_SECONDS)
            async with self._turn:
                number = self.data_version()
            if number != known:
                self._bells.ring_all()
            known = number

    def data_version(self) -> int:
        """The number that changes when another process has written."""
        connection = self._writer.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA data_version")
            return int(cursor.fetchall()[0][0])
        finally:
            connection.close()

    async def fold_for_ever(self) -> None:
        """Fold the write-ahead log into the file now and then, in a thread, beside the readers and the writer.

        Beside a writer that never rests it would never be folded to its end, and grow: once it is long, which is looked
        at after each write, the writer waits for the little that is left, and the log begins anew.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECKPOINT_SECONDS):
                    await self._log_is_long.wait()
            is_long = self._log_is_long.is_set()
            self._log_is_long.clear()
            try:
                await asyncio.to_thread(_fold, self._reader, "PASSIVE")
                if is_long:
                    async with self._turn:
                        # A reader that is in the log at this moment leaves it as it is until after the next write.
                        await asyncio.to_thread(_fold, self._writer, "TRUNCATE")
            except sqlite3.OperationalError as failed:  # no room on the disk, perhaps
                structlog.get_logger().warning("log.retry", error=str(failed))

    @contextlib.asynccontextmanager
    async def _begun(self) -> AsyncIterator[sqlalchemy.Connection]:
        """A write transaction; the lock of another process is waited for."""
        deadline = time.monotonic() + BUSY_SECONDS
        with self._writer.connect() as connection:
            while True:
                try:
                    transaction = connection.begin()
                except OperationalError as busy:
                    if "locked" not in str(busy) or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(BUSY_POLL_SECONDS)
                else:
                    break
            with transaction:
                yield connection


@contextlib.asynccontextmanager
async def open_sqlite(url: URL) -> AsyncIterator[SqliteDatabase]:
    """Open the file of `url`, bring its tables up to date, and close it at the end."""
    if not url.database or url.database == ":memory:":
        raise ValueError("database sqlite: needs a file, for readers beside the writer")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # The driver's own implicit transactions are switched off: the listeners begin them.
    options = {"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False}
    reader = sqlalchemy.create_engine(url, pool_size=4, connect_args=options)
    writer = sqlalchemy.create_engine(url, pool_size=1, max_overflow=0, connect_args=options)
    for engine, begin, wait in ((reader, "BEGIN", True), (writer, "BEGIN IMMEDIATE", False)):
        event.listen(engine, "connect", _pragmas(wait=wait))
        event.listen(engine, "begin", _beginner(begin))
    database = SqliteDatabase(reader, writer, Path(f"{url.database}-wal"))
    tasks = [asyncio.create_task(database.fold_for_ever(), name="sqlite-folding")]
    try:
        await database.migrate()
        listening = database.listen_for_ever(database.data_version())
        tasks.append(asyncio.create_task(listening, name="sqlite-listening"))
        yield database
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        reader.dispose()
        writer.dispose()


def _fold(engine: Engine, mode: str) -> None:
    """Fold what can be folded of the write-ahead log."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA wal_checkpoint({mode})")
        cursor.fetchall()
    finally:
        connection.close()


def _pragmas(*, wait: bool) -> Any:
    # NORMAL: a commit survives the death of any process; after a loss of power the last moments may be missing, as
    # whole transactions. The writer folds nothing itself and waits for no lock: both are done beside the event loop.
    # Caches fill with the history, so that they are small: what they lack the system's own cache has.
    pragmas = ["journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"cache_size=-{CACHE_KIB}"]
    if not wait:
        pragmas += ["wal_autocheckpoint=0", "busy_timeout=0"]

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return set_pragmas


def _beginner(statement: str) -> Any:
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
