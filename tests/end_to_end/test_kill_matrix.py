"""`kill -9` of every service in turn at random moments: every job ends once, with the frames of an undisturbed run."""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from rushes.client import Client, generation_spec
from rushes.v1.generation_pb2 import GenerationEvent, GenerationSpec
from services.gateway.store.database import open_database
from tests.end_to_end.history import check_database, check_history
from tests.end_to_end.processes import Suite, running_suite
from tests.gateway.history_checker import check_histories
from tests.gateway.suite import kind

SEEDS = (9, 10)
VICTIMS = ("denoiser", "gateway", "postprocess", "gateway", "encoder", "gateway")
TRIALS = int(os.environ.get("RUSHES_SOAK_TRIALS", "100"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Undisturbed:
    """What a run gives when nothing happens: SHA-256 of the clip by seed, and when each service had the work."""

    clips: Mapping[int, str]
    windows: Mapping[str, tuple[float, float]]


def spec(seed: int, *, steps: int = 12) -> GenerationSpec:
    """A job of about a second."""
    prompt = "a green square falls downward in the snow"
    return generation_spec(prompt, width=96, height=96, num_frames=9, steps=steps, seed=seed)


async def run(client: Client, seed: int) -> list[GenerationEvent]:
    """Every event of one job."""
    events = [event async for event in client.generate(spec(seed))]
    check_history(events)
    return events


async def undisturbed(client: Client) -> Undisturbed:
    """The jobs of a trial while all services live, one after the other; the windows are those of the last."""
    clips: dict[int, str] = {}
    for seed in SEEDS:
        begun = time.monotonic()
        at: dict[str, float] = {}
        async for event in client.generate(spec(seed)):
            at.setdefault(str(event.WhichOneof("event")), time.monotonic() - begun)
            if event.HasField("succeeded"):
                clips[seed] = event.succeeded.generation.video.sha256
    windows = {
        "encoder": (0.0, at["encoded"]),
        "denoiser": (at["encoded"], at["rendering"]),
        "postprocess": (at["rendering"], at["succeeded"]),
        "gateway": (0.0, at["succeeded"]),
    }
    return Undisturbed(clips=clips, windows=windows)


async def trial(suite: Suite, client: Client, victim: str, moment: float, expected: Undisturbed) -> bool:
    """Kill `victim` at the moment, start it again; whether a job was under way when it died."""
    async with asyncio.TaskGroup() as group:
        jobs = {seed: group.create_task(run(client, seed)) for seed in SEEDS}
        await asyncio.sleep(moment)
        under_way = not all(job.done() for job in jobs.values())
        await suite.services[victim].kill()
        await suite.services[victim].start()
    for seed, job in jobs.items():
        end = job.result()[-1]
        assert end.HasField("succeeded"), f"{victim} killed after {moment:.3f} s: {end}"
        assert end.succeeded.generation.video.sha256 == expected.clips[seed]
    return under_way


async def fill_every_slot(client: Client) -> None:
    """As many jobs as there are slots run at the same time: none is held by a job that is gone."""
    limits = await client.limits()
    held = [await client.create(spec(100 + number, steps=100)) for number in range(limits.max_running)]
    async with asyncio.TaskGroup() as group:
        for generation in held:
            group.create_task(first_step(client, generation.id))
    for generation in held:
        await client.cancel(generation.id)
    for generation in held:
        async with aclosing(client.watch(generation.id)) as events:
            assert [event async for event in events][-1].HasField("cancelled")


async def first_step(client: Client, generation_id: str) -> None:
    """Wait until a job has run a step."""
    async with aclosing(client.watch(generation_id)) as events:
        async for event in events:
            if event.HasField("step"):
                return
    raise AssertionError("it ended without a step")


async def kill_matrix(folder: Path, model: Path, *, trials: int, seed: int) -> None:
    """So many kills, the victims in turn, each at a random moment of its own part of the work."""
    chance = random.Random(seed)
    under_way, begun = 0, time.monotonic()
    settings = {"checkpoint_seconds": "0", "lease_seconds": "1", "refresh_seconds": "0.2"}
    async with running_suite(folder, model, **settings) as suite, Client(suite.address) as client:
        expected = await undisturbed(client)
        for number in range(trials):
            victim = VICTIMS[number % len(VICTIMS)]
            moment = chance.uniform(*expected.windows[victim])
            under_way += await trial(suite, client, victim, moment, expected)
        await fill_every_slot(client)
    print(f"{trials} kills, {under_way} of them under a running job, {time.monotonic() - begun:.0f} s")
    assert under_way >= trials // 2, f"only {under_way} of {trials} kills hit a running job"
    check_database(folder / "rushes.db")
    async with open_database(f"sqlite:///{folder}/rushes.db") as database:
        assert await check_histories(database, kind, all_ended=True) >= trials * len(SEEDS)


@pytest.mark.timeout(900)
async def test_jobs_survive_the_kill_of_any_service_at_a_random_moment(tmp_path: Path, model: Path) -> None:
    await kill_matrix(tmp_path, model, trials=6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_jobs_survive_very_many_kills(tmp_path: Path, model: Path) -> None:
    await kill_matrix(tmp_path, model, trials=TRIALS, seed=2)
