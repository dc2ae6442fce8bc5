"""Denoisers that come and go all the time: no request hangs, and none is lost."""

import asyncio
import random
from pathlib import Path

import pytest

from rushes.client import Client
from rushes.v1 import denoiser_pb2_grpc
from rushes.v1 import generation_pb2 as gp
from services.gateway.store.database import open_database
from tests.gateway.history_checker import check_histories
from tests.gateway.stage_servers import Addresses, Behaviour, Denoiser, serving, stages
from tests.gateway.suite import clip, gateway, kind, kinds, suite

WORKERS = 4
PROMPTS = 8
"""Requests of one prompt have one clip, whatever happened to them."""


def spec(number: int) -> gp.GenerationSpec:
    return gp.GenerationSpec(prompt=f"number {number % PROMPTS}", seed=7)


class Fleet:
    """Denoisers at addresses that stay, each of which is added and removed over and over."""

    def __init__(self, folder: Path, behaviour: Behaviour) -> None:
        self.addresses = [f"unix:{folder}/d{number}.sock" for number in range(WORKERS)]
        self.changes = 0
        self.resting = False
        self._behaviour = behaviour

    async def churn(self, place: int, chance: random.Random) -> None:
        """One worker comes, works for a moment, is gone with what it was doing, and comes again."""
        adder = denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server
        while not self.resting:
            async with serving("DenoiserService", Denoiser(self._behaviour), adder, listen=self.addresses[place]):
                self.changes += 1
                await asyncio.sleep(chance.uniform(0.3, 2.0))
            await asyncio.sleep(chance.uniform(0.0, 0.5))


async def survive_churn(folder: Path, *, requests: int, at_once: int, **settings: int) -> None:
    """So many requests over workers of which none stays; each ends with the clip of a quiet day."""
    async with suite(folder / "quiet") as running:
        quiet = [clip(await running.generate(spec(number))) for number in range(PROMPTS)]
    behaviour = Behaviour(slots=4, step_seconds=0.02)
    fleet = Fleet(folder, behaviour)
    stored = {"database_url": f"sqlite:///{folder}/rushes.db", "artifacts_url": f"{folder}/artifacts"}
    async with stages(behaviour) as at:
        moving = Addresses(encoder=at.encoder, denoiser=",".join(fleet.addresses), postprocess=at.postprocess)
        churning = [asyncio.create_task(fleet.churn(place, random.Random(place))) for place in range(WORKERS)]
        try:
            async with gateway(moving, behaviour, **stored, **settings) as running:
                turns = asyncio.Semaphore(at_once)

                async def one(number: int) -> None:
                    async with turns, Client(running.address) as client:
                        events = [event async for event in client.generate(spec(number))]
                        assert kinds(events)[-1] == "succeeded", events[-1].failed.generation.failure
                        assert clip(events) == quiet[number % PROMPTS]

                async with asyncio.TaskGroup() as group:
                    for number in range(requests):
                        group.create_task(one(number))
                assert fleet.changes > WORKERS
                async with open_database(running.config.database_url) as database:
                    assert await check_histories(database, kind, all_ended=True) == requests
        finally:
            fleet.resting = True
            await asyncio.wait(churning)


@pytest.mark.timeout(300)
async def test_requests_survive_workers_that_come_and_go(tmp_path):
    await survive_churn(tmp_path, requests=24, at_once=8)


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_very_many_requests_survive_workers_that_come_and_go(tmp_path):
    # A quarter of the attempts may be lost, and with the default of five some of so many requests would be given up.
    await survive_churn(tmp_path, requests=1536, at_once=64, max_stage_losses=20)
