"""Writes that succeed while their caller sees a timeout, at random places of whole runs."""

import asyncio
import contextlib
import random

from sqlalchemy.exc import OperationalError

from rushes.client import Client
from rushes.v1 import generation_pb2 as gp
from services.gateway import service
from services.gateway.store.database import open_database
from tests.gateway.history_checker import check_histories
from tests.gateway.stage_servers import Behaviour
from tests.gateway.suite import clip, kind, kinds, suite


class Forgetful:
    """A database whose every `share`th write is committed, and then said to have failed."""

    def __init__(self, database, share: float) -> None:
        self._database = database
        self._share = share
        self._chance = random.Random(7)
        self.forgotten = 0

    def __getattr__(self, name: str):
        return getattr(self._database, name)

    @contextlib.asynccontextmanager
    async def write(self):
        async with self._database.write() as connection:
            yield connection
        if self._chance.random() < self._share:
            self.forgotten += 1
            raise OperationalError("COMMIT", None, Exception("the answer was lost by the test"))


async def test_answers_that_are_lost_end_every_job_once(tmp_path, database_url, monkeypatch):
    opened: list[Forgetful] = []

    @contextlib.asynccontextmanager
    async def forgetful(url: str):
        async with open_database(url) as database:
            opened.append(Forgetful(database, share=0.0))
            yield opened[-1]

    monkeypatch.setattr(service, "open_database", forgetful)
    settings = {"database_url": database_url, "lease_seconds": 2, "max_losses": 50}
    async with suite(tmp_path, Behaviour(step_seconds=0.02), **settings) as running:
        undisturbed = clip(await running.generate(gp.GenerationSpec(prompt="a", seed=7)))
        opened[0]._share = 0.1

        async def one() -> None:
            async with Client(running.address) as client:
                events = [event async for event in client.generate(gp.GenerationSpec(prompt="a", seed=7))]
            assert kinds(events)[-1] == "succeeded", events[-1]
            assert clip(events) == undisturbed

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(one())
        assert opened[0].forgotten > 0
        opened[0]._share = 0.0
        assert kinds(await running.generate())[-1] == "succeeded"
    async with open_database(database_url) as database:
        assert await check_histories(database, kind, all_ended=True) == 10
