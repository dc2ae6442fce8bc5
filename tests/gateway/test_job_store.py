"""The job store on SQLite and PostgreSQL: leases, fencing, exactly one end."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import delete, select, update

from services.gateway.fair_queue import TIERS
from services.gateway.store.database import Database, open_database
from services.gateway.store.ending import Story
from services.gateway.store.job import Job, Lease, LeaseLost, NewJob, Outcome, RequestIdReused, UnknownGeneration
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import LeaseStore
from services.gateway.store.tables import events, generations, metadata, tenants
from services.gateway.store.topics import topic
from services.gateway.store.transitions import TERMINAL, TRANSITIONS, State
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def event(job: Job) -> bytes:
    return job.state.name.lower().encode()


STORY = Story(terminal=event, replayed=lambda payload: payload == b"fragment")


class Store:
    """Both halves of the store on one clock."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.jobs = JobStore(database, clock=self.clock, story=STORY)
        self.leases = LeaseStore(database, tiers=TIERS, lease_seconds=10, clock=self.clock, story=STORY)
        self._made = 0

    async def create(
        self, *, tenant: str = "a", tier: int = 2, request_id: str | None = None, digest: str = "d"
    ) -> Job:
        self._made += 1
        new = NewJob(
            id=f"g{self._made:06d}",
            tenant=tenant,
            tier=tier,
            request_id=request_id or f"r{self._made}",
            request_digest=digest,
            fingerprint="f",
            spec=b"spec",
            cost=1.0,
            traceparent="t",
        )
        return (await self.jobs.create(new, queued_event=event))[0]

    async def claim(self, owner: str = "me") -> tuple[Lease, Job] | None:
        return await self.leases.claim(owner, started_event=lambda job: f"claimed {job.attempt}".encode())

    async def reap(self, max_losses: int = 3) -> list[Job]:
        return await self.leases.reap(max_losses=max_losses, back_off=lambda _: 0.0, failure=lambda _: b"lost")


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    yield Store(database)
    await check_histories(database, bytes.decode)


async def test_a_request_id_used_twice_makes_one_generation(store: Store):
    first = await store.create(request_id="r")
    again = await store.create(request_id="r")
    assert again.id == first.id
    assert await store.jobs.queued_count() == 1


async def test_creates_that_race_with_one_request_id_make_one_generation(store: Store):
    made = await asyncio.gather(*(store.create(request_id="r") for _ in range(8)))
    assert len({job.id for job in made}) == 1


async def test_a_request_id_used_with_another_request_names_the_first_generation(store: Store):
    first = await store.create(request_id="r", digest="one")
    with pytest.raises(RequestIdReused) as refused:
        await store.create(request_id="r", digest="two")
    assert refused.value.first == first.id


async def test_the_same_request_id_of_two_tenants_makes_two_generations(store: Store):
    assert (await store.create(tenant="a", request_id="r")).id != (await store.create(tenant="b", request_id="r")).id


async def test_a_tenant_does_not_reach_the_generation_of_another(store: Store):
    job = await store.create(tenant="a")
    for reach in (store.jobs.get, store.jobs.cancel, store.jobs.delete):
        with pytest.raises(UnknownGeneration):
            await reach(job.id, "b")


async def test_claims_that_race_take_every_generation_once(store: Store):
    made = [await store.create() for _ in range(12)]
    claimed = [one for one in await asyncio.gather(*(store.claim(f"w{i}") for i in range(16))) if one]
    claimed += [one for one in await asyncio.gather(*(store.claim(f"v{i}") for i in range(16))) if one]
    assert sorted(lease.id for lease, _ in claimed) == [job.id for job in made]


async def test_a_zombie_writes_nothing(store: Store):
    await store.create()
    zombie, job = await store.claim("zombie")
    store.clock.now += 11
    await store.reap()
    await store.claim("heir")
    for write in (
        store.leases.append(zombie, [b"step"], after=job.last_sequence),
        store.leases.heartbeat(zombie),
        store.leases.preview(zombie, 1, b"preview"),
        store.leases.finish(zombie, Outcome(state=State.SUCCEEDED)),
        store.leases.release(zombie),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert [e.payload for e in await store.jobs.events(job.id, after=0, limit=9)] == [
        b"queued",
        b"claimed 1",
        b"claimed 2",
    ]


async def test_an_owner_that_still_lives_but_was_reaped_is_a_zombie_at_once(store: Store):
    await store.create()
    lease, job = await store.claim()
    store.clock.now += 11
    await store.reap()
    with pytest.raises(LeaseLost):
        await store.leases.append(lease, [b"step"], after=job.last_sequence)


async def test_a_heartbeat_keeps_the_lease(store: Store):
    await store.create()
    lease, _ = await store.claim()
    for _ in range(5):
        store.clock.now += 8
        await store.leases.heartbeat(lease)
    assert await store.reap() == []


async def test_a_clock_that_steps_back_loses_no_lease(store: Store):
    await store.create()
    lease, _ = await store.claim()
    store.clock.now -= 3600
    assert await store.reap() == []
    await store.leases.heartbeat(lease)


async def test_the_last_loss_fails_the_generation(store: Store):
    job = await store.create()
    for _ in range(3):
        await store.claim()
        store.clock.now += 11
        await store.reap()
    ended = await store.jobs.get(job.id, "a")
    assert (ended.state, ended.failure, ended.losses) == (State.FAILED, b"lost", 3)


async def test_a_released_generation_is_not_a_lost_one(store: Store):
    job = await store.create()
    for _ in range(5):
        lease, _ = await store.claim()
        await store.leases.release(lease)
    waiting = await store.jobs.get(job.id, "a")
    assert (waiting.state, waiting.attempt, waiting.losses) == (State.QUEUED, 5, 0)


async def test_a_cancellation_of_a_lost_generation_is_honoured_by_the_reaper(store: Store):
    job = await store.create()
    await store.claim()
    await store.jobs.cancel(job.id, "a")
    store.clock.now += 11
    await store.reap()
    assert (await store.jobs.get(job.id, "a")).state is State.CANCELLED


async def test_a_cancelled_generation_that_waits_ends_at_once_and_is_never_claimed(store: Store):
    job = await store.create()
    assert (await store.jobs.cancel(job.id, "a")).state is State.CANCELLED
    assert (await store.jobs.cancel(job.id, "a")).state is State.CANCELLED
    assert await store.claim() is None


async def test_an_append_whose_answer_was_lost_writes_once(store: Store):
    await store.create()
    lease, job = await store.claim()
    for _ in range(3):
        assert await store.leases.append(lease, [b"s1", b"s2"], after=job.last_sequence) == job.last_sequence + 2
    assert len(await store.jobs.events(job.id, after=0, limit=99)) == 4


async def test_an_end_whose_answer_was_lost_ends_once(store: Store):
    job = await store.create()
    lease, _ = await store.claim()
    for _ in range(3):
        assert (await store.leases.finish(lease, Outcome(state=State.SUCCEEDED))).id == job.id
    assert len(await store.jobs.events(job.id, after=0, limit=99)) == 3


async def test_a_tenant_at_its_cap_waits_while_others_go_on(store: Store, database: Database):
    async with database.write() as connection:
        await connection.execute(tenants.insert().values(name="a", weight=1.0, max_running=1, created=0.0))
    for _ in range(2):
        await store.create(tenant="a")
    await store.create(tenant="b")
    taken = [await store.claim() for _ in range(3)]
    assert [one and one[1].tenant for one in taken] == ["a", "b", None]


async def test_priority_goes_first_and_tenants_take_turns(store: Store):
    order = [("a", 1), ("a", 1), ("b", 1), ("a", 3), ("a", 2)]
    for tenant, tier in order:
        await store.create(tenant=tenant, tier=tier)
    taken = [(await store.claim())[1] for _ in order]
    assert [(job.tenant, job.tier) for job in taken] == [("a", 3), ("a", 2), ("a", 1), ("b", 1), ("a", 1)]


async def test_only_a_generation_that_has_ended_can_be_deleted(store: Store):
    job = await store.create()
    assert not await store.jobs.delete(job.id, "a")
    await store.jobs.cancel(job.id, "a")
    assert await store.jobs.delete(job.id, "a")
    assert await store.jobs.events(job.id, after=0, limit=9) == []


async def test_an_append_rings_the_bell_of_its_watchers(store: Store, database: Database):
    await store.create()
    lease, job = await store.claim()
    with database.notifications.subscribe(topic(job.id)) as bell:
        await store.leases.append(lease, [b"step"], after=job.last_sequence)
        await asyncio.wait_for(bell.wait(), 5)


async def test_an_append_rings_in_another_gateway_of_the_same_postgres(postgres: str):
    with empty_database(postgres) as url:
        async with open_database(url) as one, open_database(url) as other:
            store = Store(one)
            await store.create()
            lease, job = await store.claim()
            with other.notifications.subscribe(topic(job.id)) as bell:
                await store.leases.append(lease, [b"step"], after=job.last_sequence)
                await asyncio.wait_for(bell.wait(), 5)


async def test_gateways_that_open_one_database_at_once_make_its_tables_once(database_url: str):
    async def opened() -> None:
        async with open_database(database_url) as database, database.read() as connection:
            await connection.execute(select(generations))

    await asyncio.gather(*(opened() for _ in range(3)))


async def test_a_database_that_was_written_twice_over_is_caught_by_the_checker(store: Store, database: Database):
    job = await store.create()
    async with database.write() as connection:
        await connection.execute(update(events).values(sequence=7))
    with pytest.raises(AssertionError, match="not dense"):
        await check_histories(database, bytes.decode)
    async with database.write() as connection:
        await connection.execute(delete(generations).where(generations.c.id == job.id))


class Machine(RuleBasedStateMachine):
    """Any order of everything that callers, workers, clocks and reapers do, held against a model of it."""

    url: str
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.context = open_database(self.url)
        self.database = self.run(self.context.__aenter__())
        self.run(self._empty())
        self.store = Store(self.database)
        self.states: dict[str, State] = {}
        self.epochs: dict[str, int] = {}
        self.until: dict[str, float] = {}
        self.asked: set[str] = set()
        self.last: dict[str, int] = {}

    async def _empty(self) -> None:
        async with self.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                if table.name != "secrets":
                    await connection.execute(delete(table))

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def holds(self, lease: Lease) -> bool:
        return self.states[lease.id] is State.RUNNING and self.epochs[lease.id] == lease.epoch

    @rule(tenant=st.sampled_from("ab"), tier=st.sampled_from([1, 2, 3]))
    def create(self, tenant: str, tier: int) -> None:
        job = self.run(self.store.create(tenant=tenant, tier=tier))
        self.states[job.id], self.last[job.id] = State.QUEUED, 1

    @rule(target=leases, owner=st.sampled_from(["w1", "w2"]))
    def claim(self, owner: str) -> Lease | None:
        claimed = self.run(self.store.claim(owner))
        waiting = {key for key, state in self.states.items() if state is State.QUEUED}
        if claimed is None:
            assert not waiting
            return None
        lease, job = claimed
        assert lease.id in waiting
        assert lease.epoch > self.epochs.get(lease.id, 0)
        self.states[lease.id], self.epochs[lease.id] = State.RUNNING, lease.epoch
        self.until[lease.id] = self.store.clock.now + 10
        self.last[lease.id] += 1
        assert job.last_sequence == self.last[lease.id]
        return lease

    def attempt(self, lease: Lease | None, coroutine) -> bool:
        if lease is None:
            coroutine.close()
            return False
        allowed = self.holds(lease)
        try:
            self.run(coroutine)
        except LeaseLost:
            assert not allowed
            return False
        assert allowed
        return True

    @rule(lease=leases, count=st.integers(1, 3), again=st.booleans())
    def append(self, lease: Lease | None, count: int, again: bool) -> None:
        for _ in range(2 if again else 1):
            after = self.last[lease.id] if lease else 0
            call = self.store.leases.append(lease or Lease(id="", owner="", epoch=0), [b"step"] * count, after=after)
            if self.attempt(lease, call) and not again:
                self.last[lease.id] += count
            again_allowed = lease is not None and self.holds(lease)
            if again and again_allowed:
                repeated = self.run(self.store.leases.append(lease, [b"step"] * count, after=after))
                assert repeated == after + count
                self.last[lease.id] += count
            return

    @rule(lease=leases)
    def heartbeat(self, lease: Lease | None) -> None:
        call = self.store.leases.heartbeat(lease or Lease(id="", owner="", epoch=0))
        if self.attempt(lease, call):
            self.until[lease.id] = self.store.clock.now + 10

    @rule(lease=consumes(leases), state=st.sampled_from(sorted(TERMINAL)))
    def finish(self, lease: Lease | None, state: State) -> None:
        call = self.store.leases.finish(lease or Lease(id="", owner="", epoch=0), Outcome(state=state))
        if self.attempt(lease, call):
            self.states[lease.id] = state
            self.last[lease.id] += 1

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if self.attempt(lease, self.store.leases.release(lease or Lease(id="", owner="", epoch=0))):
            self.states[lease.id] = State.QUEUED

    @rule(data=st.data())
    def cancel(self, data) -> None:
        if not self.states:
            return
        key = data.draw(st.sampled_from(sorted(self.states)))
        for tenant in "ab":
            try:
                self.run(self.store.jobs.cancel(key, tenant))
            except UnknownGeneration:
                continue
        if self.states[key] is State.QUEUED:
            self.states[key] = State.CANCELLED
            self.last[key] += 1
        elif self.states[key] is State.RUNNING:
            self.asked.add(key)

    @rule(seconds=st.sampled_from([-5.0, 1.0, 6.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.store.clock.now += seconds

    @rule()
    def reap(self) -> None:
        expired = {
            key
            for key, state in self.states.items()
            if state is State.RUNNING and self.until[key] < self.store.clock.now
        }
        reaped = self.run(self.store.reap())
        assert {job.id for job in reaped} == expired
        for job in reaped:
            assert job.state in TRANSITIONS[State.RUNNING]
            assert job.state is State.CANCELLED or job.id not in self.asked
            self.states[job.id], self.epochs[job.id] = job.state, job.lease_epoch
            self.last[job.id] += job.state in TERMINAL

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "store"):
            return

        async def rows():
            async with self.database.read() as connection:
                columns = generations.c.id, generations.c.state, generations.c.last_sequence
                return (await connection.execute(select(*columns))).all()

        stored = self.run(rows())
        assert {row.id: State(row.state) for row in stored} == self.states
        assert {row.id: row.last_sequence for row in stored} == self.last

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.run(check_histories(self.database, bytes.decode))
        finally:
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()


QUICK = settings(
    max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def run_machine(url: str, examples: settings) -> None:
    machine = type("Machine", (Machine,), {"url": url})
    machine.TestCase.settings = examples
    case = machine.TestCase("runTest")
    case.runTest()


def test_any_order_of_operations_agrees_with_the_model_on_sqlite():
    with tempfile.TemporaryDirectory() as folder:
        run_machine(f"sqlite:///{Path(folder) / 'machine.db'}", QUICK)


def test_any_order_of_operations_agrees_with_the_model_on_postgres(postgres: str):
    with empty_database(postgres) as url:
        run_machine(url, QUICK)


@pytest.mark.soak
def test_very_many_orders_of_operations_agree_with_the_model(database_url: str):
    run_machine(database_url, settings(QUICK, max_examples=300, stateful_step_count=60))
