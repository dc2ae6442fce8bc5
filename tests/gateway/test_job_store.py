"""The job store on SQLite and PostgreSQL: leases, fencing, exactly one end."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import Executable, bindparam, delete, select, text, update
from sqlalchemy.exc import OperationalError

from services.chassis.errors import Unavailable
from services.gateway.store import postgres as postgres_module
from services.gateway.store import sqlite as sqlite_module
from services.gateway.store.database import Database, open_database
from services.gateway.store.job import LeaseLost, Outcome, RequestIdReused, UnknownGeneration
from services.gateway.store.leases import TAKE
from services.gateway.store.tables import events, generations, tenants, tier_clocks
from services.gateway.store.topics import topic
from services.gateway.store.transitions import State
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories
from tests.gateway.store_on_a_clock import Store

COST = select(generations.c.cost).where(generations.c.id == bindparam("key"))


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
        store.leases.release(zombie, "DRAINED"),
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
        await store.leases.release(lease, "DRAINED")
    waiting = await store.jobs.get(job.id, "a")
    assert (waiting.state, waiting.attempt, waiting.losses, waiting.requeued) == (State.QUEUED, 5, 0, "DRAINED")


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
        await asyncio.wait_for(bell.wait(), 60)


async def test_an_append_rings_in_another_gateway_of_the_same_postgres(postgres: str):
    with empty_database(postgres) as url:
        async with open_database(url) as one, open_database(url) as other:
            store = Store(one)
            await store.create()
            lease, job = await store.claim()
            with other.notifications.subscribe(topic(job.id)) as bell:
                await store.leases.append(lease, [b"step"], after=job.last_sequence)
                await asyncio.wait_for(bell.wait(), 60)


async def test_an_append_rings_in_another_process_of_the_same_sqlite(tmp_path):
    url = f"sqlite:///{tmp_path}/rushes.db"
    async with open_database(url) as one, open_database(url) as other:
        store = Store(one)
        await store.create()
        lease, job = await store.claim()
        with other.notifications.subscribe(topic(job.id)) as bell:
            await store.leases.append(lease, [b"step"], after=job.last_sequence)
            await asyncio.wait_for(bell.wait(), 5)


async def test_a_gateway_that_stops_within_a_transaction_holds_up_nobody_for_long(postgres: str, monkeypatch):
    monkeypatch.setattr(postgres_module, "IDLE_SECONDS", 1)
    with empty_database(postgres) as url:
        async with open_database(url) as one, open_database(url) as other:
            store = Store(other)
            await store.create()
            stuck = one.write()
            connection = await stuck.__aenter__()
            await connection.execute(select(tier_clocks).with_for_update())
            assert await asyncio.wait_for(store.claim(), 60) is not None
            with pytest.raises(OperationalError):
                await stuck.__aexit__(None, None, None)


async def test_a_gateway_that_stops_in_the_midst_of_a_statement_holds_up_nobody_for_long(postgres: str, monkeypatch):
    monkeypatch.setattr(postgres_module, "IDLE_SECONDS", 1)
    with empty_database(postgres) as url:
        async with open_database(url) as other:
            store = Store(other)
            await store.create()
            settings = {"idle_in_transaction_session_timeout": "1s", "application_name": postgres_module.APPLICATION}
            stuck = await asyncpg.connect(url, server_settings=settings)
            await stuck.execute("BEGIN")
            await stuck.execute("SELECT * FROM tier_clocks FOR UPDATE")
            await stuck.prepare("SELECT 1")
            assert await asyncio.wait_for(store.claim(), 60) is not None
            assert stuck.is_closed()


async def test_a_statement_that_is_cancelled_is_no_outage_and_the_next_one_works(postgres: str):
    with empty_database(postgres) as url:
        async with open_database(url) as database:

            async def sleep() -> None:
                async with database.read() as connection:
                    await connection.execute(text("SELECT pg_sleep(60)"))

            for _ in range(12):  # more often than there are connections to lose
                sleeping = asyncio.create_task(sleep())
                await asyncio.sleep(0.1)
                sleeping.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sleeping
            await Store(database).create()


async def test_a_mistake_in_a_prebuilt_statement_is_no_outage_and_rolls_back(postgres: str):
    with empty_database(postgres) as url:
        async with open_database(url) as database:
            job = await Store(database).create()

            async def err(statement: Executable) -> None:
                async with database.write() as connection:
                    await connection.execute(update(generations).values(cost=7.0))
                    await connection.run(statement, {"key": 5, "owner": "me", "until": 1.0, "now": 1.0})

            with pytest.raises(asyncpg.DataError):
                await err(TAKE)
            with pytest.raises(asyncpg.UndefinedColumnError):
                await err(select(text("no_such_column")))
            async with database.read() as connection:
                (row,) = await connection.run(COST, {"key": job.id})
            assert row.cost == job.cost != 7.0


async def test_gateways_that_open_one_database_at_once_make_its_tables_once(database_url: str):
    async def opened() -> None:
        async with open_database(database_url) as database, database.read() as connection:
            await connection.execute(select(generations))

    await asyncio.gather(*(opened() for _ in range(3)))


async def test_the_log_of_a_sqlite_that_is_always_written_stays_short(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_module, "CHECKPOINT_SECONDS", 0.02)
    monkeypatch.setattr(sqlite_module, "LONG_LOG_BYTES", 100 * 4096)
    log, longest, written = tmp_path / "rushes.db-wal", 0, 0
    async with open_database(f"sqlite:///{tmp_path}/rushes.db") as database:
        store = Store(database)
        while written < 4_000:
            await store.create()
            written += 4  # at least: the row, its indices, its event
            longest = max(longest, log.stat().st_size)
            await asyncio.sleep(0)
    assert longest < 2_000 * 4096


async def test_a_database_that_does_not_open_is_named_with_the_reason_and_without_the_password(tmp_path):
    (tmp_path / "file").touch()
    for url, named, reason in (
        ("postgresql://me:hidden@127.0.0.1:1/jobs", "postgresql://me:***@127.0.0.1:1/jobs", "onnect"),
        (f"sqlite:///{tmp_path}/file/jobs.db", f"sqlite:///{tmp_path}/file/jobs.db", "xists"),
    ):
        with pytest.raises(Unavailable) as refused:
            async with open_database(url):
                pass
        assert f"database_url: {named} does not open" in refused.value.message
        assert reason in refused.value.message
        assert "hidden" not in refused.value.message


async def test_a_database_that_was_written_twice_over_is_caught_by_the_checker(store: Store, database: Database):
    job = await store.create()
    async with database.write() as connection:
        await connection.execute(update(events).values(sequence=7))
    with pytest.raises(AssertionError, match="not dense"):
        await check_histories(database, bytes.decode)
    async with database.write() as connection:
        await connection.execute(delete(generations).where(generations.c.id == job.id))
