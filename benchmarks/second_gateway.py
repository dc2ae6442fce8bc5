"""How long an event is under way to a watcher of another gateway, on SQLite and on PostgreSQL.

Two gateways are processes of their own on one database, over the gateway tests' stages. One of them runs the job; what
is measured is the delay of its steps at watchers of the other.
"""

import asyncio
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from sqlalchemy import select

from benchmarks.gateway import SETTINGS, WATCH, delays_of, follow
from benchmarks.job_store import SHORT, databases
from benchmarks.measurement import Figure, Report, at_most
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.gateway.store.database import open_database
from services.gateway.store.tables import generations
from tests.gateway.processes import process
from tests.gateway.stage_servers import Behaviour, stages

STEPS = 60
STEP_SECONDS = 0.17
"""No multiple of any interval at which a gateway looks."""


async def _round(behaviour: Behaviour, url: str, gateways: dict[int, str]) -> list[float]:
    """Delays of one job's steps at the gateway that does not run it. `gateways`: addresses by process."""
    behaviour.gate.clear()
    async with AsyncExitStack() as stack:
        channels = {
            pid: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for pid, address in gateways.items()
        }
        spec = gp.GenerationSpec(prompt="watched from elsewhere")
        spec.sampling.steps = STEPS
        spec.previews.every_steps = 0
        any_stub = GenerationServiceStub(next(iter(channels.values())))
        made = (await any_stub.CreateGeneration(gp.CreateGenerationRequest(spec=spec))).generation
        request = gp.WatchGenerationRequest(id=made.id).SerializeToString()
        watching = asyncio.Semaphore(0)
        watches = {
            pid: asyncio.create_task(follow(channel, WATCH, request, watching)) for pid, channel in channels.items()
        }
        for _ in watches:
            await watching.acquire()
        owner = None
        while owner is None:
            async with open_database(url) as database, database.read() as connection:
                query = select(generations.c.lease_owner).where(generations.c.id == made.id)
                owner = (await connection.execute(query)).scalar_one()
        behaviour.gate.set()
        seen = {pid: await watch for pid, watch in watches.items()}
        (other,) = (pid for pid in gateways if f"-{pid}-" not in owner)
    return delays_of(seen[other])


async def measure(repeats: int = 3) -> Report:
    """Rounds on both databases in turns."""
    delays: dict[str, list[float]] = {}
    async with databases() as found, AsyncExitStack() as stack:
        urls = {name: by_history[SHORT] for name, by_history in found.items()}
        gateways: dict[str, dict[int, str]] = {}
        behaviours: dict[str, Behaviour] = {}
        for name, url in urls.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            behaviours[name] = Behaviour(step_seconds=STEP_SECONDS)
            at = await stack.enter_async_context(stages(behaviours[name]))
            gateways[name] = {}
            for _ in range(2):
                running, address = await stack.enter_async_context(process(at, url, folder, **SETTINGS))
                gateways[name][running.pid] = address
        for _ in range(repeats):
            for name, url in urls.items():
                delays.setdefault(name, []).extend(await _round(behaviours[name], url, gateways[name]))
    figures: list[Figure] = [
        at_most(f"{name}: median delay at a watcher of another gateway", statistics.median(seconds) * 1000, 100, "ms")
        for name, seconds in delays.items()
    ]
    return Report(
        title=f"Second gateway: {repeats} jobs of {STEPS} steps, watched at the gateway that does not run them",
        figures=tuple(figures),
        samples=delays,
    )
