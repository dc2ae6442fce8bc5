"""One database, two dialects: SQLite with one writer, PostgreSQL with many."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy
from sqlalchemy import Executable
from sqlalchemy.engine import URL, CursorResult, make_url
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Unavailable
from services.gateway.store.notifications import Notifications
from services.gateway.store.postgres import open_postgres
from services.gateway.store.sqlite import open_sqlite


class Connection(Protocol):
    """What the store needs of a connection, whichever dialect it is of."""

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement; its rows are all there."""

    async def run(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement that was built once and for all, its values in `parameters`."""

    async def later(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        """Run a statement whose result nobody needs, at the latest before the commit.

        It must be built once and for all, its values in `parameters`, and touch no row that another such one touches.
        """

    def ring(self, *topics: str) -> None:
        """Ring `topics` in every gateway once the write transaction is committed."""


class Database(Protocol):
    """Transactions, and the bells that ring after a commit."""

    notifications: Notifications
    postgres: bool

    def read(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection for reading."""

    def write(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection in a write transaction, committed at the end and rolled back on an error."""

    def upsert(self, table: sqlalchemy.Table) -> Any:
        """An INSERT of the dialect, which knows `on_conflict_do_update`."""


_Opener = Callable[[URL], contextlib.AbstractAsyncContextManager[Database]]


@contextlib.asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open `url` (`sqlite:///path` or `postgresql://...`), bring its tables up to date, and close it at the end.

    Raises `Unavailable` with the driver's reason when it does not open, `ValueError` for another kind of URL.
    """
    parsed = make_url(url)
    openers: dict[str, _Opener] = {"sqlite": open_sqlite, "postgresql": open_postgres}
    opener = openers.get(parsed.get_backend_name())
    if opener is None:
        raise ValueError(f"database {parsed.get_backend_name()}: must be sqlite or postgresql")
    async with contextlib.AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(opener(parsed))
        except (DBAPIError, OSError) as failed:
            cause = failed.orig if isinstance(failed, DBAPIError) else failed
            named = parsed.render_as_string(hide_password=True)
            raise Unavailable(f"database_url: {named} does not open: {cause}", reason="STORE_UNAVAILABLE") from failed
        yield database
