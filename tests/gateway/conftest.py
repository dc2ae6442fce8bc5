"""Databases for the gateway's tests: a SQLite file, and a real PostgreSQL from a wheel."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from services.gateway.store.database import Database, open_database
from tests.gateway.postgres_server import postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test process."""
    with postgres_server() as server:
        yield server.uri


@contextlib.contextmanager
def empty_database(server: str) -> Iterator[str]:
    """The URL of a database of its own on `server`."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each dialect in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/rushes.db"
    else:
        with empty_database(request.getfixturevalue("postgres")) as url:
            yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open, migrated database of each dialect in turn."""
    async with open_database(database_url) as opened:
        yield opened
