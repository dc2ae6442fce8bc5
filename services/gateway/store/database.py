"""One database, two dialects: SQLite with one writer, PostgreSQL with many."""

import asyncio
import contextlib
import functools
import math
import re
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from psycopg.errors import IdleInTransactionSessionTimeout
from sqlalchemy import ClauseElement, Executable, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, CursorResult, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.gateway.store import migrations
from services.gateway.store.notifications import CHANNEL, LocalNotifications, Notifications, PostgresNotifications

BUSY_SECONDS = 30.0
BUSY_POLL_SECONDS = 0.005
CHECKPOINT_SECONDS = 5.0
POOL_SIZE = 8
TOPICS = "topics"
PING_AFTER_SECONDS = 1.0
IDLE_SECONDS = 10
"""After so long a transaction of a gateway that was stopped in its midst, or cut off, no longer holds up the others."""
LISTEN_SECONDS = 0.025
"""How often a SQLite file is looked at for what other processes have written."""
_USED = "used"
_DIALECT = make_url("postgresql+psycopg://").get_dialect()()
_PING = sqlalchemy.text("SELECT 1")
_PARAMETER = re.compile(r"%\((?=\w+\)s)")


class Connection(Protocol):
    """What the store needs of a connection, whichever dialect it is of."""

    @property
    def info(self) -> MutableMapping[Any, Any]:
        """Notes that go with the connection."""

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement; its rows are all there."""

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Run a statement whose result nobody needs, at the latest before the commit.

        It must be built once and for all, its values in `parameters`, and touch no row that another such one touches.
        """


class Database(Protocol):
    """Transactions, and the bells that ring after a commit."""

    notifications: Notifications
    postgres: bool

    def read(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection in a read transaction."""

    def write(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""

    async def ring(self, connection: Connection, *topics: str) -> None:
        """Ring `topics` in every gateway once the write transaction of `connection` is committed."""

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""


class _InlineConnection:
    """A connection of SQLite, run where it is called.

    A statement on a local file takes tens of microseconds, and each of the driver's hops to a thread and back takes as
    long. What can take longer is kept off the event loop: the write lock is waited for without blocking, and the
    write-ahead log is folded into the file by a thread.
    """

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection

    @property
    def info(self) -> MutableMapping[Any, Any]:
        """Notes that go with the connection."""
        return self._connection.info

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement."""
        return self._connection.execute(statement, parameters)

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Run one statement."""
        self._connection.execute(statement, parameters)


class SqliteDatabase:
    """A SQLite file: one writer of this process at a time, in `BEGIN IMMEDIATE`, beside readers of snapshots."""

    postgres = False

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self._bells = LocalNotifications()
        self.notifications: Notifications = self._bells

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """A connection in a read transaction."""
        with self._reader.connect() as connection:
            yield _InlineConnection(connection)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""
        topics: list[str] = []
        async with self._turn, self._begun() as connection:
            connection.info[TOPICS] = topics
            yield _InlineConnection(connection)
        for topic in topics:
            self.notifications.ring(topic)

    async def ring(self, connection: Connection, *topics: str) -> None:
        """Ring `topics` in this process once the write transaction of `connection` is committed."""
        connection.info[TOPICS].extend(topics)

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
        """Fold the write-ahead log into the file now and then, in a thread, beside the readers and the writer."""
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            await asyncio.to_thread(self._fold)

    def _fold(self) -> None:
        with self._reader.connect() as connection:
            connection.rollback()
            connection.connection.dbapi_connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # type: ignore[union-attr]

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


class _DeferringConnection:
    """A connection of PostgreSQL, to which a round trip costs more than a statement.

    Statements without results and the bells go with the commit: all in one, as common table expressions.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._deferred: list[tuple[Executable, Mapping[str, Any]]] = []

    @property
    def info(self) -> MutableMapping[Any, Any]:
        """Notes that go with the connection."""
        return self._connection.info

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement."""
        return await self._connection.execute(statement, parameters)

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Keep a statement for `flush`."""
        self._deferred.append((statement, parameters))

    async def flush(self, topics: Sequence[str]) -> None:
        """Run what was kept, and ring `topics` at the commit."""
        if not self._deferred and not topics:
            return
        values: dict[str, Any] = {f"topic_{number}": topic for number, topic in enumerate(topics)}
        for number, (_, parameters) in enumerate(self._deferred):
            values |= {f"d{number}_{name}": value for name, value in parameters.items()}
        sql = _flush_sql(tuple(statement for statement, _ in self._deferred), len(topics))
        await self._connection.exec_driver_sql(sql, values)
        self._deferred.clear()


@functools.lru_cache(maxsize=256)
def _flush_sql(statements: tuple[Executable, ...], topics: int) -> str:
    """One statement that runs all of `statements`, the parameters of each under names of its own, and rings."""
    parts = []
    for number, statement in enumerate(statements):
        if not isinstance(statement, ClauseElement):
            raise TypeError(f"{statement!r} cannot be run later")
        sql = str(statement.compile(dialect=_DIALECT))
        parts.append(f"d{number} AS ({_PARAMETER.sub(rf'%(d{number}_', sql)} RETURNING 1)")
    bells = ", ".join(f"pg_notify('{CHANNEL}', %(topic_{number})s)" for number in range(topics))
    return f"{'WITH ' if parts else ''}{', '.join(parts)} SELECT {bells or '1'}"


class PostgresDatabase:
    """A PostgreSQL server, shared with other gateways."""

    postgres = True

    def __init__(self, engine: AsyncEngine, notifications: Notifications) -> None:
        self._engine = engine
        self.notifications = notifications

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """A connection in a read transaction."""
        async with self._connect() as connection:
            yield _DeferringConnection(connection)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""
        topics: dict[str, None] = {}
        async with self._connect() as connection, connection.begin():
            connection.info[TOPICS] = topics
            deferring = _DeferringConnection(connection)
            yield deferring
            await deferring.flush(list(topics))
        for topic in topics:
            self.notifications.ring(topic)

    async def ring(self, connection: Connection, *topics: str) -> None:
        """Ring `topics` in every gateway once the write transaction of `connection` is committed."""
        connection.info[TOPICS].update(dict.fromkeys(topics))

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection that answers: one that has rested for a while is asked first, and replaced if it is dead."""
        async with self._engine.connect() as connection:
            if time.monotonic() - connection.info.get(_USED, math.inf) > PING_AFTER_SECONDS:
                try:
                    await connection.execute(_PING)
                except DBAPIError as dead:
                    if not dead.connection_invalidated:
                        raise
                await connection.rollback()
            try:
                yield connection
            finally:
                if not connection.invalidated:
                    connection.info[_USED] = time.monotonic()

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""
        return postgresql.insert(table)

    async def migrate(self) -> None:
        """Bring the tables up to date."""
        async with self._engine.begin() as connection:
            await connection.run_sync(migrations.upgrade)


@contextlib.asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open `url` (`sqlite:///path` or `postgresql://...`), bring its tables up to date, and close it at the end."""
    parsed = make_url(url)
    opener = {"sqlite": _open_sqlite, "postgresql": _open_postgres}.get(parsed.get_backend_name())
    if opener is None:
        raise ValueError(f"database {parsed.get_backend_name()}: must be sqlite or postgresql")
    async with opener(parsed) as database:
        yield database


@contextlib.asynccontextmanager
async def _open_sqlite(url: URL) -> AsyncIterator[Database]:
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
    database = SqliteDatabase(reader, writer)
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


@contextlib.asynccontextmanager
async def _open_postgres(url: URL) -> AsyncIterator[Database]:
    engine = create_async_engine(url.set(drivername="postgresql+psycopg"), pool_size=POOL_SIZE, max_overflow=POOL_SIZE)
    event.listen(engine.sync_engine, "connect", _bound_idling)
    event.listen(engine.sync_engine, "handle_error", _idled, retval=True)
    libpq = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        async with PostgresNotifications(libpq) as notifications:
            database = PostgresDatabase(engine, notifications)
            await database.migrate()
            yield database
    finally:
        await engine.dispose()


def _bound_idling(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    cursor.close()
    connection.commit()


def _idled(context: ExceptionContext) -> Exception | None:
    """The end of a transaction that idled is an outage like others; psycopg calls it an internal error."""
    cause = context.original_exception
    if not isinstance(cause, IdleInTransactionSessionTimeout):
        return None
    context.is_disconnect = True
    return OperationalError(context.statement, context.parameters, cause, connection_invalidated=True)


def _pragmas(*, wait: bool) -> Any:
    # NORMAL: a commit survives the death of any process; after a loss of power the last moments may be missing, as
    # whole transactions. The writer folds nothing itself and waits for no lock: both are done beside the event loop.
    pragmas = ["journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"]
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
