"""Figures of the job store and the watch: `python -m tests.gateway.measure claims|growth|watchers --database URL`."""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import aclosing

from sqlalchemy import String, cast, func, insert, literal, select, true

from rushes.v1 import denoiser_pb2
from rushes.v1 import generation_pb2 as gp
from services.gateway.store.database import Database, open_database
from services.gateway.store.job import Outcome
from services.gateway.store.tables import generations
from services.gateway.store.transitions import State
from tests.gateway.test_job_store import Store
from tests.gateway.test_watch import Desk

FINISHED = 1_000_000


async def claims(database: Database, count: int) -> dict[str, float]:
    """Claim and complete, one after the other, as one gateway does."""
    store = Store(database)
    async with database.read() as connection:
        made = select(func.count()).select_from(generations).where(generations.c.id.like("g%"))
        store._made = int((await connection.execute(made)).scalar_one())
    began = time.perf_counter()
    for _ in range(count):
        await store.create()
    created = time.perf_counter()
    for _ in range(count):
        claimed = await store.claim()
        assert claimed is not None
        await store.leases.finish(claimed[0], Outcome(state=State.SUCCEEDED))
    ended = time.perf_counter()
    return {
        "creates_per_second": count / (created - began),
        "claims_and_completions_per_second": count / (ended - created),
    }


async def growth(database: Database, count: int) -> dict[str, float]:
    """The cost of claim and complete with a short and with a long history of finished generations."""
    short = await claims(database, count)
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < FINISHED))
    fresh = {"id": "f", "request_id": "f"}
    columns = [
        literal(fresh[column.name]).concat(cast(numbers.c.n, String)) if column.name in fresh else column
        for column in generations.c
    ]
    joined = generations.join(numbers, true())
    rows = select(*columns).select_from(joined).where(generations.c.id == "g000001")
    async with database.write() as connection:
        await connection.execute(insert(generations).from_select([column.name for column in generations.c], rows))
    long = await claims(database, count)
    name = "claims_and_completions_per_second"
    return {"short": short[name], "long": long[name], "cost_ratio": short[name] / long[name]}


async def watchers(database: Database, count: int) -> dict[str, float]:
    """From the append of an event to every one of `count` watchers of this process, without the network."""
    desk = Desk(database)
    delays: list[float] = []
    sent: dict[int, float] = {}

    async def watch() -> None:
        async with aclosing(desk.watches.watch("g1", after=2)) as events:
            delays.extend(
                [time.perf_counter() - sent[event.step.index] async for event in events if event.HasField("step")]
            )

    async with desk.watches, asyncio.TaskGroup() as group:
        lease, job = await desk.start()
        for _ in range(count):
            group.create_task(watch())
        await asyncio.sleep(0.5)
        last = job.last_sequence
        for index in range(20):
            step = gp.GenerationEvent(step=denoiser_pb2.StepProgress(index=index))
            sent[index] = time.perf_counter()
            last = await desk.leases.append(lease, [step.SerializeToString()], after=last)
            await asyncio.sleep(0.1)
        await desk.leases.finish(lease, Outcome(state=State.SUCCEEDED))
    delays.sort()
    return {
        "median_milliseconds": 1e3 * statistics.median(delays),
        "p99_milliseconds": 1e3 * delays[int(0.99 * len(delays))],
    }


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """The figures that were asked for."""
    async with open_database(arguments.database) as database:
        return await globals()[arguments.what](database, arguments.count)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["claims", "growth", "watchers"])
    parser.add_argument("--database", default="")
    parser.add_argument("--count", type=int, default=500)
    with tempfile.TemporaryDirectory() as folder:
        arguments = parser.parse_args()
        arguments.database = arguments.database or f"sqlite:///{folder}/measure.db"
        sys.stdout.write(json.dumps(asyncio.run(measure(arguments)), indent=1) + "\n")


if __name__ == "__main__":
    main()
