"""Watching by cursor, straight on the store: no gap, no duplicate, and nobody slowed by anybody."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from rushes.v1 import denoiser_pb2
from rushes.v1 import generation_pb2 as gp
from services.chassis.errors import Exhausted
from services.gateway import views, watch
from services.gateway.fair_queue import TIERS
from services.gateway.history import Entry, History
from services.gateway.store.database import Database, open_database
from services.gateway.store.job import Job, Lease, LeaseLost, NewJob, Outcome
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import LeaseStore
from services.gateway.store.transitions import State
from services.gateway.watch import Previews, Watches
from tests.gateway.conftest import empty_database

STEP = gp.GenerationEvent(step=denoiser_pb2.StepProgress(index=1)).SerializeToString()


async def write_one(history: History) -> None:
    async with history:
        await history.append(STEP)
        await history.flush()


class Desk:
    """One gateway's half of the store."""

    def __init__(self, database: Database, *, heartbeat_seconds: float = 10.0) -> None:
        self.jobs = JobStore(database, clock=time.time, story=views.STORY)
        self.leases = LeaseStore(database, tiers=TIERS, lease_seconds=60, clock=time.time, story=views.STORY)
        self.previews = Previews(database.notifications)
        self.watches = Watches(
            self.jobs,
            database.notifications,
            self.previews,
            heartbeat_seconds=heartbeat_seconds,
            remote_previews=database.postgres,
        )

    async def start(self) -> tuple[Lease, Job]:
        """A generation that runs."""
        new = NewJob(
            id="g1",
            tenant="local",
            tier=2,
            request_id="r",
            request_digest="d",
            fingerprint="f",
            spec=b"",
            cost=1.0,
            traceparent=f"00-{'1' * 32}-{'2' * 16}-01",
        )
        await self.jobs.create(new, queued_event=lambda job: views.queued_event(job, position=1, eta_seconds=None))
        claimed = await self.leases.claim("me", started_event=views.started_event)
        assert claimed is not None
        return claimed

    async def watch(self, after: int = 0) -> AsyncGenerator[gp.GenerationEvent, None]:
        """What a watcher gets."""
        async with aclosing(self.watches.watch("g1", after=after)) as shown:
            async for one in shown:
                event = gp.WatchGenerationResponse.FromString(one.response).event
                assert (one.sequence, one.terminal) == (event.sequence, views.is_terminal(event))
                yield event

    async def sequences(self, after: int = 0) -> list[int]:
        """The durable ones, to the end."""
        async with aclosing(self.watch(after)) as events:
            return [event.sequence async for event in events if event.sequence]


@asynccontextmanager
async def desk(database: Database, **settings) -> AsyncIterator[Desk]:
    opened = Desk(database, **settings)
    async with opened.watches:
        yield opened


async def test_watchers_that_begin_anywhere_get_the_rest_once(database: Database):
    async with desk(database) as at:
        lease, job = await at.start()
        watchers = [asyncio.create_task(at.sequences(after)) for after in (0, 1, 2)]
        last = job.last_sequence
        for _ in range(20):
            last = await at.leases.append(lease, [STEP] * 3, after=last)
        late = asyncio.create_task(at.sequences(40))
        await at.leases.finish(lease, Outcome(state=State.SUCCEEDED))
        for task, after in zip([*watchers, late], (0, 1, 2, 40), strict=True):
            assert await task == list(range(after + 1, last + 2))


async def test_a_watcher_far_behind_reads_the_store_and_misses_nothing(database: Database, monkeypatch):
    monkeypatch.setattr(watch, "TAIL_EVENTS", 8)
    async with desk(database) as at:
        lease, job = await at.start()
        async with aclosing(at.watch(0)) as slow:
            first = await anext(slow)
            fast = asyncio.create_task(at.sequences())
            last = job.last_sequence
            for _ in range(30):
                last = await at.leases.append(lease, [STEP] * 5, after=last)
            await at.leases.finish(lease, Outcome(state=State.FAILED))
            assert await asyncio.wait_for(fast, 120) == list(range(1, last + 2))
            assert [first.sequence, *[event.sequence async for event in slow]] == list(range(1, last + 2))


async def test_a_slow_viewer_loses_previews_and_is_told_how_many(database: Database):
    async with desk(database) as at:
        lease, job = await at.start()
        async with aclosing(at.watch(job.last_sequence)) as events:
            at.previews.publish("g1", denoiser_pb2.Preview(step_index=0))
            assert (await anext(events)).preview.preview.step_index == 0
            for index in range(1, 10):
                at.previews.publish("g1", denoiser_pb2.Preview(step_index=index))
            while (found := (await anext(events)).preview).preview.step_index != 9:
                pass
            assert found.dropped >= 1
            assert found.dropped <= 8
        await at.leases.finish(lease, Outcome(state=State.SUCCEEDED))


async def test_a_quiet_stream_says_that_it_is_alive(database: Database):
    async with desk(database, heartbeat_seconds=0.05) as at:
        lease, job = await at.start()
        async with aclosing(at.watch(job.last_sequence)) as events:
            assert (await anext(events)).HasField("heartbeat")
            assert (await anext(events)).HasField("heartbeat")
        await at.leases.finish(lease, Outcome(state=State.SUCCEEDED))


async def test_a_watcher_of_another_gateway_sees_events_and_previews(postgres: str):
    with empty_database(postgres) as url:
        async with open_database(url) as one, open_database(url) as other, desk(one) as owner, desk(other) as viewer:
            lease, job = await owner.start()
            async with aclosing(viewer.watch(job.last_sequence)) as events:
                pending = asyncio.ensure_future(anext(events))
                await owner.leases.append(lease, [STEP], after=job.last_sequence)
                assert (await asyncio.wait_for(pending, 60)).HasField("step")
                picture = denoiser_pb2.Preview(step_index=4, data=b"x" * 30_000)
                await owner.leases.preview(lease, 1, picture.SerializeToString())
                assert (await asyncio.wait_for(anext(events), 60)).preview.preview == picture
                await owner.leases.finish(lease, Outcome(state=State.SUCCEEDED))
                assert views.is_terminal(await asyncio.wait_for(anext(events), 60))


async def test_watchers_that_go_away_leave_no_tail_behind(database: Database):
    async with desk(database) as at:
        lease, _ = await at.start()
        watchers = [asyncio.create_task(at.sequences()) for _ in range(50)]
        await asyncio.sleep(0.1)
        for task in watchers:
            task.cancel()
        await asyncio.wait(watchers)
        assert not at.watches._tails
        await at.leases.finish(lease, Outcome(state=State.SUCCEEDED))


async def test_what_is_recorded_holds_back_later_events_and_not_the_work(database: Database):
    async with desk(database) as at:
        lease, job = await at.start()
        stored = asyncio.Event()

        async def record() -> Entry:
            await stored.wait()
            step = denoiser_pb2.StepProgress(index=1)
            return Entry(payload=gp.GenerationEvent(step=step).SerializeToString(), changes={"steps_run": 7})

        async with History(at.leases, lease, job.last_sequence) as history:
            for index in (0, 2):
                await history.append(
                    gp.GenerationEvent(step=denoiser_pb2.StepProgress(index=index)).SerializeToString()
                )
                if index == 0:
                    await history.record(record)
            stored.set()
        written = await at.jobs.events("g1", after=job.last_sequence, limit=9)
        assert [gp.GenerationEvent.FromString(one.payload).step.index for one in written] == [0, 1, 2]
        assert (await at.jobs.get("g1", "local")).steps_run == 7
        await at.leases.finish(lease, Outcome(state=State.CANCELLED))


async def test_what_cannot_be_recorded_ends_the_work_and_loses_no_other_event(database: Database):
    async with desk(database) as at:
        lease, job = await at.start()

        async def record() -> Entry:
            raise Exhausted("The store is full.", reason="ARTIFACTS_FULL")

        async def work() -> None:
            async with History(at.leases, lease, job.last_sequence) as history:
                await history.append(STEP)
                await history.record(record)
                await history.append(STEP)
                await history.flush()

        with pytest.raises(Exhausted):
            await work()
        assert len(await at.jobs.events("g1", after=job.last_sequence, limit=9)) == 2
        await at.leases.finish(lease, Outcome(state=State.FAILED))


async def test_the_history_writes_in_order_and_says_when_the_lease_is_lost(database: Database):
    async with desk(database) as at:
        lease, job = await at.start()
        async with History(at.leases, lease, job.last_sequence) as history:
            for index in range(200):
                step = denoiser_pb2.StepProgress(index=index)
                await history.append(gp.GenerationEvent(step=step).SerializeToString(), {"steps_run": index})
        stored = await at.jobs.events("g1", after=job.last_sequence, limit=500)
        indices = [gp.GenerationEvent.FromString(event.payload).step.index for event in stored]
        assert indices == list(range(200))
        assert (await at.jobs.get("g1", "local")).steps_run == 199
        await at.leases.finish(lease, Outcome(state=State.CANCELLED))
        with pytest.raises(LeaseLost):
            await write_one(History(at.leases, lease, 202))
