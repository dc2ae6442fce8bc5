"""What workers do with generations: claim, heartbeat, write under the lease, finish; and the reaper."""

import asyncio
import functools
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    CompoundSelect,
    Executable,
    Float,
    Select,
    String,
    bindparam,
    cast,
    func,
    null,
    select,
    union_all,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from services.gateway.fair_queue import Tier, TierClock, advance, choose_tier
from services.gateway.store.conditions import QUEUED, RUNNING
from services.gateway.store.database import Connection, Database
from services.gateway.store.ending import INSERT_EVENT, EventOf, Story, end, event_values
from services.gateway.store.job import Job, Lease, LeaseLost, Outcome
from services.gateway.store.tables import generations, previews, tenants, tier_clocks
from services.gateway.store.topics import QUEUE_TOPIC, topic
from services.gateway.store.transitions import State

NO_CHANGES: Mapping[str, object] = MappingProxyType({})
LEASE_EXPIRED = "LEASE_EXPIRED"
"""Why a generation waits again whose owner was silent for too long."""
WHOLE_QUEUE = 0
"""The row of `tier_clocks` whose start tag is the virtual time of the whole queue."""
TAKE = (
    update(generations)
    .where(generations.c.id == bindparam("key"), generations.c.state == State.QUEUED)
    .values(
        state=State.RUNNING,
        lease_owner=bindparam("owner"),
        lease_epoch=generations.c.lease_epoch + 1,
        lease_until=bindparam("until"),
        attempt=generations.c.attempt + 1,
        started=func.coalesce(generations.c.started, bindparam("now")),
        last_sequence=generations.c.last_sequence + 1,
    )
    .returning(*generations.c)
)


class _Overtaken(Enum):
    """While the clocks were waited for, another gateway took the generation that was next."""

    OVERTAKEN = auto()


_OVERTAKEN: Final = _Overtaken.OVERTAKEN


class LeaseStore:
    """Generations as their workers see them. Every write after the claim is fenced by the lease's epoch.

    A write raises `LeaseLost` when the epoch is past: whoever holds it must stop, and can publish nothing.
    """

    def __init__(
        self,
        database: Database,
        *,
        tiers: Sequence[Tier],
        lease_seconds: float,
        clock: Callable[[], float],
        story: Story,
    ) -> None:
        self._database = database
        self._tiers = {tier.number: tier for tier in tiers}
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._story = story
        self._set_clock = _set_clock(database)
        self._set_preview = _set_preview(database)
        self._looking = _looking(self._tiers)
        self._claiming = asyncio.Lock()

    async def claim(
        self, owner: str, *, started_event: EventOf, among: Collection[int] | None = None
    ) -> tuple[Lease, Job] | None:
        """Lease the generation that fair queueing serves next, or None if none may run.

        `among`: numbers of the tiers that it may be of; None stands for all.
        """
        # Claims wait for each other at the clocks anyway: here without holding a connection.
        async with self._claiming:
            while True:
                taken = await self._claim(owner, started_event, among)
                if taken is not _OVERTAKEN:
                    return taken

    async def _claim(
        self, owner: str, started_event: EventOf, among: Collection[int] | None
    ) -> tuple[Lease, Job] | _Overtaken | None:
        async with self._database.write() as connection:
            now = self._clock()  # not earlier: what was queued while the lock was waited for may be next
            clocks, heads = {}, {}
            for found in await connection.run(self._looking, {"now": now}):
                if found.id is None:
                    clocks[found.tier] = TierClock(start_tag=found.start_tag, virtual_time=found.virtual_time)
                else:
                    heads[found.tier] = found.id
            capped = await self._capped(connection)
            virtual_time = clocks.get(WHOLE_QUEUE, TierClock()).start_tag
            tier = choose_tier(
                virtual_time=virtual_time,
                clocks=clocks,
                backlogged=[
                    self._tiers[number]
                    for number in heads
                    if number not in capped and (among is None or number in among)
                ],
            )
            if tier is None:
                return None
            taking = {"key": heads[tier.number], "owner": owner, "now": now, "until": now + self._lease_seconds}
            taken = await connection.run(TAKE, taking)
            if not taken:
                return _OVERTAKEN
            job = Job.from_row(taken[0])
            clock = clocks.get(tier.number, TierClock())
            virtual_time, clock = advance(
                virtual_time=virtual_time, clock=clock, tier=tier, cost=job.cost, start_tag=job.start_tag
            )
            for number, start, virtual in (
                (WHOLE_QUEUE, virtual_time, 0.0),
                (tier.number, clock.start_tag, clock.virtual_time),
            ):
                await connection.later(self._set_clock, {"clock": number, "start": start, "virtual": virtual})
            await _insert_events(connection, job, [started_event(job)], now)
            connection.ring(topic(job.id))
        return Lease(id=job.id, owner=owner, epoch=job.lease_epoch), job

    async def _capped(self, connection: Connection) -> set[int]:
        caps = {number: tier.max_running for number, tier in self._tiers.items() if tier.max_running is not None}
        if not caps:
            return set()
        counts = select(generations.c.tier, func.count().label("running")).where(RUNNING).group_by(generations.c.tier)
        return {row.tier for row in await connection.execute(counts) if row.running >= caps.get(row.tier, math.inf)}

    async def heartbeat(self, lease: Lease) -> Job:
        """Extend the lease; the answer says whether a cancellation was asked for."""
        until = self._clock() + self._lease_seconds
        async with self._database.write() as connection:
            return await _fenced(connection, lease, {"lease_until": until})

    async def append(
        self, lease: Lease, payloads: Sequence[bytes], *, after: int, changes: Mapping[str, object] = NO_CHANGES
    ) -> int:
        """Write events after the sequence `after`, and `changes` of the job's columns with them; the new last sequence.

        The same call again, after a failure that left open whether it had succeeded, writes nothing twice.
        """
        now, last = self._clock(), after + len(payloads)
        async with self._database.write() as connection:
            job = await _write(connection, lease, {**changes, "last_sequence": last}, after=after)
            if job is None:
                known = await _read(connection, lease)
                if known is None or known.last_sequence != last or known.terminal:
                    raise LeaseLost(lease.id)
                return last
            await _insert_events(connection, job, payloads, now)
            connection.ring(topic(lease.id))
        return last

    async def preview(self, lease: Lease, version: int, payload: bytes) -> None:
        """Replace the latest preview, for watchers of other gateways."""
        values = {"shown": lease.id, "number": version, "picture": payload}
        async with self._database.write() as connection:
            await _fenced(connection, lease, {"lease_owner": lease.owner})
            await connection.later(self._set_preview, values)
            connection.ring(topic(lease.id))

    async def finish(self, lease: Lease, outcome: Outcome) -> Job:
        """End the generation; the same call again changes nothing."""
        now = self._clock()
        async with self._database.write() as connection:
            job = await end(
                self._database,
                connection,
                generation_id=lease.id,
                lease=lease,
                outcome=outcome,
                now=now,
                story=self._story,
            )
            if job is None:
                job = await _read(connection, lease)
                if job is None or not job.terminal:
                    raise LeaseLost(lease.id)
            connection.ring(topic(lease.id))
        return job

    async def release(self, lease: Lease, reason: str) -> None:
        """Put the generation back into the queue, as work that was not lost; `reason` is what its next event says."""
        async with self._database.write() as connection:
            await _fenced(connection, lease, _requeued(reason))
            connection.ring(QUEUE_TOPIC)

    async def reap(
        self, *, max_losses: int, back_off: Callable[[int], float], failure: Callable[[Job], bytes]
    ) -> list[Job]:
        """Take back the generations whose leases have expired: into the queue, or after the last loss to an end.

        `back_off` gives the seconds to wait after so many losses, `failure` the reason of the end.
        """
        now = self._clock()
        expired = select(generations).where(RUNNING, generations.c.lease_until < now).limit(100)
        async with self._database.read() as connection:
            found = [Job.from_row(row) for row in await connection.execute(expired)]
        return [job for lost in found if (job := await self._reap(lost, now, max_losses, back_off, failure))]

    async def _reap(
        self,
        lost: Job,
        now: float,
        max_losses: int,
        back_off: Callable[[int], float],
        failure: Callable[[Job], bytes],
    ) -> Job | None:
        lease = Lease(id=lost.id, owner=lost.lease_owner or "", epoch=lost.lease_epoch)
        async with self._database.write() as connection:
            expired = (generations.c.id == lost.id) & (generations.c.lease_until < now)
            values = {"losses": generations.c.losses + 1, "lease_epoch": generations.c.lease_epoch + 1}
            row = (
                await connection.execute(
                    update(generations)
                    .where(expired, generations.c.lease_epoch == lease.epoch, generations.c.state == State.RUNNING)
                    .values(values)
                    .returning(*generations.c)
                )
            ).one_or_none()
            if row is None:
                return None
            job = Job.from_row(row)
            lease = Lease(id=job.id, owner=lease.owner, epoch=job.lease_epoch)
            outcome: Outcome | None = None
            if job.cancel_requested:
                outcome = Outcome(state=State.CANCELLED)
            elif job.losses >= max_losses:
                outcome = Outcome(state=State.FAILED, failure=failure(job))
            if outcome is None:
                job = await _fenced(
                    connection, lease, {**_requeued(LEASE_EXPIRED), "not_before": now + back_off(job.losses)}
                )
                connection.ring(QUEUE_TOPIC)
            else:
                job = (
                    await end(
                        self._database,
                        connection,
                        generation_id=job.id,
                        lease=lease,
                        outcome=outcome,
                        now=now,
                        story=self._story,
                    )
                    or job
                )
            connection.ring(topic(job.id))
        return job


def _head(tier: int) -> Select[tuple[str, int]]:
    at_cap = (
        select(generations.c.tenant)
        .join(tenants, tenants.c.name == generations.c.tenant)
        .where(RUNNING, tenants.c.max_running.is_not(None))
        .group_by(generations.c.tenant, tenants.c.max_running)
        .having(func.count() >= tenants.c.max_running)
    )
    return (
        select(generations.c.id, generations.c.tier)
        .where(
            QUEUED,
            generations.c.follows.is_(None),
            generations.c.tier == tier,
            generations.c.not_before <= bindparam("now"),
            generations.c.tenant.not_in(at_cap),
        )
        .order_by(generations.c.rank, generations.c.id)
        .limit(1)
    )


def _looking(tiers: Iterable[int]) -> CompoundSelect[Any]:
    """The clocks, locked until the commit, and behind them the generation that is next in each tier."""
    clocks = (
        select(tier_clocks).order_by(tier_clocks.c.tier).with_for_update().cte("clocks").prefix_with("MATERIALIZED")
    )
    no_tag, no_id = cast(null(), Float), cast(null(), String)
    heads = [_head(number).subquery(f"head_{number}") for number in tiers]
    return union_all(
        select(clocks.c.tier, clocks.c.start_tag, clocks.c.virtual_time, no_id.label("id")),
        *(select(head.c.tier, no_tag, no_tag, head.c.id) for head in heads),
    )


def _requeued(reason: str) -> dict[str, object]:
    return {"state": State.QUEUED, "lease_owner": None, "lease_until": None, "requeued": reason}


@functools.cache
def _fenced_update(columns: tuple[str, ...], *, in_sequence: bool) -> ReturningUpdate[Any]:
    """An update of these columns under a lease; built once, since building takes longer than running."""
    fence = (
        (generations.c.id == bindparam("lease_id"))
        & (generations.c.lease_epoch == bindparam("lease_number"))
        & (generations.c.state == State.RUNNING)
    )
    if in_sequence:
        fence &= generations.c.last_sequence == bindparam("after")
    new: dict[str, object] = {column: bindparam(f"new_{column}") for column in columns}
    return update(generations).where(fence).values(new).returning(*generations.c)


async def _write(
    connection: Connection, lease: Lease, values: Mapping[str, object], *, after: int | None = None
) -> Job | None:
    parameters = {f"new_{column}": value for column, value in values.items()}
    parameters |= {"lease_id": lease.id, "lease_number": lease.epoch}
    if after is not None:
        parameters["after"] = after
    statement = _fenced_update(tuple(values), in_sequence=after is not None)
    rows = await connection.run(statement, parameters)
    return Job.from_row(rows[0]) if rows else None


async def _fenced(connection: Connection, lease: Lease, values: Mapping[str, object]) -> Job:
    job = await _write(connection, lease, values)
    if job is None:
        raise LeaseLost(lease.id)
    return job


async def _read(connection: Connection, lease: Lease) -> Job | None:
    query = select(generations).where(generations.c.id == lease.id, generations.c.lease_epoch == lease.epoch)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Job.from_row(row)


async def _insert_events(connection: Connection, job: Job, payloads: Sequence[bytes], now: float) -> None:
    first = job.last_sequence - len(payloads) + 1
    for sequence, payload in enumerate(payloads, start=first):
        await connection.later(INSERT_EVENT, event_values(job, sequence, job.lease_owner or "", now, payload))


def _set_clock(database: Database) -> Executable:
    """Sets one clock. Of one row: an INSERT of several is compiled anew each time that it runs."""
    values: dict[str, Any] = {"start_tag": bindparam("start"), "virtual_time": bindparam("virtual")}
    upsert = database.upsert(tier_clocks).values(tier=bindparam("clock"), **values)
    excluded = {name: upsert.excluded[name] for name in values}
    return typing.cast("Executable", upsert.on_conflict_do_update(index_elements=["tier"], set_=excluded))


def _set_preview(database: Database) -> Executable:
    """Replaces the latest preview of a generation."""
    values: dict[str, Any] = {"version": bindparam("number"), "payload": bindparam("picture")}
    upsert = database.upsert(previews).values(generation_id=bindparam("shown"), **values)
    excluded = {name: upsert.excluded[name] for name in values}
    return typing.cast("Executable", upsert.on_conflict_do_update(index_elements=["generation_id"], set_=excluded))
