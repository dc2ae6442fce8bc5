"""The store on a PostgreSQL server."""

import asyncio
import contextlib
import functools
import math
import re
import time
from collections import namedtuple
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import sqlalchemy
import structlog
from sqlalchemy import ClauseElement, Executable, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL, CursorResult, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql.compiler import SQLCompiler

from services.gateway.store import migrations
from services.gateway.store.notifications import CHANNEL, Notifications, PostgresNotifications

POOL_SIZE = 8
PING_AFTER_SECONDS = 1.0
IDLE_SECONDS = 10
"""After so long a transaction of a gateway that was stopped in its midst, or cut off, no longer holds up the others."""
OUTAGES = ("08", "25P03", "40", "53", "54", "55", "57", "58")
"""Beginnings of the SQLSTATEs of what is not the statement's fault: the same call may work a little later.

Connections, a transaction that idled, rollbacks, resources, limits, states, operators and the system:
https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""
_USED = "used"
_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()
_PING = sqlalchemy.text("SELECT 1")
APPLICATION = "rushes-gateway"
"""What the connections of gateways are called in `pg_stat_activity`."""
_END_STUCK = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = $2
AND state = 'active' AND wait_event = 'ClientRead' AND state_change < now() - make_interval(secs => $1)
"""
_PARAMETER = re.compile(r"\$(\d+)")


class DeferringConnection:
    """A connection of PostgreSQL, to which a round trip costs more than a statement.

    Statements without results and the bells go with the commit: all in one, as common table expressions. What is built
    once and for all goes to the driver as it is.
    """

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection) -> None:
        self._connection = connection
        self._driver = driver
        self._deferred: list[tuple[Executable, Mapping[str, Any]]] = []
        self.topics: dict[str, None] = {}

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement."""
        return await self._connection.execute(statement, parameters)

    async def run(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement that was built once and for all."""
        prepared = _prepared(statement)
        values = {**prepared.values, **parameters}
        with _outages_named(self._driver, prepared.sql):
            records = await self._driver.fetch(prepared.sql, *[values[name] for name in prepared.order])
        return [prepared.row(*record) for record in records]

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Keep a statement for `flush`."""
        self._deferred.append((statement, parameters))

    def ring(self, *topics: str) -> None:
        """Ring `topics` in every gateway once the write transaction is committed."""
        self.topics.update(dict.fromkeys(topics))

    async def flush(self) -> None:
        """Run what was kept, and let the commit ring."""
        if not self._deferred and not self.topics:
            return
        sql, orders = _flush_sql(tuple(statement for statement, _ in self._deferred), len(self.topics))
        values = [
            parameters[name] for (_, parameters), order in zip(self._deferred, orders, strict=True) for name in order
        ]
        with _outages_named(self._driver, sql):
            await self._driver.fetch(sql, *values, *self.topics)
        self._deferred.clear()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A statement as the driver takes it: the values that it has of its own, the order of all, and what rows are."""

    sql: str
    values: dict[str, Any]
    order: tuple[str, ...]
    row: Any


@functools.lru_cache(maxsize=256)
def _prepared(statement: Executable) -> _Prepared:
    compiled = _compiled(statement)
    columns = [column.name for column in getattr(statement, "exported_columns", ())]
    return _Prepared(
        sql=str(compiled),
        values={name: bound.value for name, bound in compiled.binds.items() if not bound.required},
        order=tuple(compiled.positiontup or ()),
        row=namedtuple("Row", columns),
    )


@functools.lru_cache(maxsize=256)
def _flush_sql(statements: tuple[Executable, ...], topics: int) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """One statement that runs all of `statements` and rings; and the parameters of each in their order."""
    parts: list[str] = []
    orders: list[tuple[str, ...]] = []
    taken = 0
    for number, statement in enumerate(statements):
        compiled = _compiled(statement)
        order = tuple(compiled.positiontup or ())
        renumbered = functools.partial(_renumbered, taken)
        parts.append(f"d{number} AS ({_PARAMETER.sub(renumbered, str(compiled))} RETURNING 1)")
        orders.append(order)
        taken += len(order)
    bells = ", ".join(f"pg_notify('{CHANNEL}', ${taken + number})" for number in range(1, topics + 1))
    return f"{'WITH ' if parts else ''}{', '.join(parts)} SELECT {bells or '1'}", tuple(orders)


def _compiled(statement: Executable) -> SQLCompiler:
    compiled = statement.compile(dialect=_DIALECT) if isinstance(statement, ClauseElement) else None
    if not isinstance(compiled, SQLCompiler) or compiled.post_compile_params:
        raise TypeError(f"{statement} is no statement whose parameters are known")
    return compiled


@contextlib.contextmanager
def _outages_named(driver: asyncpg.Connection, sql: str) -> Iterator[None]:
    """An outage under the name that SQLAlchemy has for it; what else the driver raises is a mistake of this module."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failed:
        if not driver.is_closed() and not isinstance(failed, OSError) and not _passing(failed):
            raise
        raise OperationalError(sql, None, failed) from failed


def _renumbered(taken: int, placeholder: re.Match[str]) -> str:
    return f"${taken + int(placeholder[1])}"


class PostgresDatabase:
    """A PostgreSQL server, shared with other gateways."""

    postgres = True

    def __init__(self, engine: AsyncEngine, notifications: Notifications) -> None:
        self._engine = engine
        self.notifications = notifications

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[DeferringConnection]:
        """A connection for reading; each statement sees what is committed when it begins."""
        async with self._connect() as (connection, driver):
            yield DeferringConnection(connection, driver)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[DeferringConnection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""
        async with self._connect() as (connected, driver):
            connection = DeferringConnection(connected, driver)
            over = False
            try:
                await _say(driver, "BEGIN")
                yield connection
                await connection.flush()
                await _say(driver, "COMMIT")
                over = True
            except Exception:
                await _say(driver, "ROLLBACK")
                over = True
                raise
            finally:
                if not over and connected.sync_connection is not None:
                    connected.sync_connection.invalidate()
        for topic in connection.topics:
            self.notifications.ring(topic)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[tuple[AsyncConnection, asyncpg.Connection]]:
        """A connection that answers: one that has rested for a while is asked first, and replaced if it is dead."""
        async with self._engine.connect() as connection:
            if time.monotonic() - connection.info.get(_USED, math.inf) > PING_AFTER_SECONDS:
                try:
                    await connection.execute(_PING)
                except DBAPIError as dead:
                    if not dead.connection_invalidated:
                        raise
                await connection.rollback()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                yield connection, driver
            finally:
                if not connection.invalidated:
                    if driver.is_closed():
                        await connection.invalidate()
                    else:
                        connection.info[_USED] = time.monotonic()

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""
        return postgresql.insert(table)


async def _say(driver: asyncpg.Connection, command: str) -> None:
    with _outages_named(driver, command):
        await driver.execute(command)


@contextlib.asynccontextmanager
async def open_postgres(url: URL) -> AsyncIterator[PostgresDatabase]:
    """Connect to the server of `url`, bring the tables up to date, and close all connections at the end."""
    libpq = url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect() -> asyncpg.Connection:
        settings = {"idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s", "application_name": APPLICATION}
        try:
            return await asyncpg.connect(libpq, server_settings=settings)
        except OSError as refused:
            raise asyncpg.CannotConnectNowError(str(refused)) from refused

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        isolation_level="AUTOCOMMIT",  # transactions are begun by `PostgresDatabase.write`
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
    )
    event.listen(engine.sync_engine, "handle_error", _outage, retval=True)
    freeing = asyncio.create_task(_free_for_ever(connect), name="postgres-freeing")
    try:
        async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            await connection.run_sync(migrations.upgrade)
        async with PostgresNotifications(libpq) as notifications:
            yield PostgresDatabase(engine, notifications)
    finally:
        freeing.cancel()
        await asyncio.wait([freeing])
        await engine.dispose()


async def _free_for_ever(connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
    """End transactions whose gateway stopped between the two halves of a statement, its preparing and its running.

    PostgreSQL counts such a session as active, and its own limit for idle ones does not end it. The connection is a new
    one: those of the engine may all be waiting for what such a session has locked.
    """
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        try:
            driver = await connect()
            try:
                ended = await driver.fetch(_END_STUCK, float(IDLE_SECONDS), APPLICATION)
            finally:
                driver.terminate()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            continue  # Whoever needs the database says that it is away.
        if ended:
            structlog.get_logger().warning("sessions.ended", count=len(ended))


def _outage(context: ExceptionContext) -> Exception | None:
    """An outage under one name, whether it came with an SQLSTATE or as a connection that is no more."""
    cause = context.original_exception
    if not isinstance(cause, Exception):  # A cancelled statement takes its connection with it, and stays cancelled.
        return None
    if not context.is_disconnect and not _passing(cause):
        return None
    return OperationalError(context.statement, context.parameters, cause, connection_invalidated=context.is_disconnect)


def _passing(error: Exception) -> bool:
    """Whether its SQLSTATE is one of an outage."""
    return (getattr(error, "sqlstate", None) or "").startswith(OUTAGES)
