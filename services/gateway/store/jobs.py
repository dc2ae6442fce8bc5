"""What callers do with generations: create, read, list, cancel, delete."""

import asyncio
import secrets as entropy
from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy import bindparam, case, delete, func, insert, select, union_all, update
from sqlalchemy.exc import IntegrityError

from services.gateway.fair_queue import Backlog, rank, tags
from services.gateway.store.conditions import QUEUED, RUNNING
from services.gateway.store.database import Connection, Database
from services.gateway.store.ending import EventOf, Story, answer, end
from services.gateway.store.job import Job, NewJob, Outcome, RequestIdReused, StoredEvent, UnknownGeneration
from services.gateway.store.tables import events, flows, generations, previews, secrets, tier_clocks
from services.gateway.store.topics import QUEUE_TOPIC, topic
from services.gateway.store.transitions import TERMINAL, State

EXPIRED_AT_ONCE = 100
"""Generations that one transaction deletes, with all their events: others wait for it."""

# Built once: every event of every watched generation is read by it.
EVENTS_AFTER = (
    select(events.c.sequence, events.c.epoch, events.c.owner, events.c.created, events.c.payload)
    .where(events.c.generation_id == bindparam("watched"), events.c.sequence > bindparam("cursor"))
    .order_by(events.c.sequence)
    .limit(bindparam("most"))
)


class JobStore:
    """Generations as their owners see them. A tenant only ever reaches its own."""

    def __init__(self, database: Database, *, clock: Callable[[], float], story: Story) -> None:
        self._database = database
        self._clock = clock
        self._story = story

    async def create(self, new: NewJob, *, queued_event: EventOf, cached: bool = False) -> tuple[Job, bool]:
        """Queue a generation; the same request id again answers the first one, and False.

        `cached` lets the clip of an equal generation be the answer: at once if it is finished, when it is if it is
        being made. Raises `RequestIdReused` if the request id came with another request.
        """
        known = await self.find_request(new.tenant, new.request_id, new.request_digest)
        if known is not None:
            return known, False
        try:
            async with self._database.write() as connection:
                job = await self._insert(connection, new, self._clock(), queued_event, cached=cached)
        except IntegrityError:
            first = await self.find_request(new.tenant, new.request_id, new.request_digest)
            if first is None:
                raise
            return first, False
        return job, True

    async def create_all(self, new: Sequence[NewJob], *, queued_event: EventOf) -> list[Job]:
        """Queue many generations, or none; the same request ids again answer the first ones."""
        known = [await self.find_request(one.tenant, one.request_id, one.request_digest) for one in new]
        if any(known):
            return [one for one in known if one is not None]
        now = self._clock()
        async with self._database.write() as connection:
            return [await self._insert(connection, one, now, queued_event, cached=False) for one in new]

    async def find_request(self, tenant: str, request_id: str, digest: str) -> Job | None:
        """The generation that a request id made; `RequestIdReused` if its request was another one."""
        query = select(generations).where(generations.c.tenant == tenant, generations.c.request_id == request_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if row.request_digest != digest:
            raise RequestIdReused(row.id)
        return Job.from_row(row)

    async def _insert(
        self, connection: Connection, new: NewJob, now: float, queued_event: EventOf, *, cached: bool
    ) -> Job:
        source = await self._equal(connection, new) if cached else None
        in_flight = source is not None and source.state is not State.SUCCEEDED
        virtual_time = (
            await connection.execute(select(tier_clocks.c.virtual_time).where(tier_clocks.c.tier == new.tier))
        ).scalar_one_or_none()
        flow = (flows.c.tier == new.tier) & (flows.c.tenant == new.tenant)
        finish_tag = (await connection.execute(select(flows.c.finish_tag).where(flow))).scalar_one_or_none()
        work_tags = tags(
            virtual_time=virtual_time or 0.0, finish_tag=finish_tag or 0.0, cost=new.cost, weight=new.weight
        )
        upsert = self._database.upsert(flows)
        await connection.execute(
            upsert.values(tier=new.tier, tenant=new.tenant, finish_tag=work_tags.finish).on_conflict_do_update(
                index_elements=["tier", "tenant"], set_={"finish_tag": work_tags.finish}
            )
        )
        row = (
            await connection.execute(
                insert(generations)
                .values(
                    id=new.id,
                    tenant=new.tenant,
                    tier=new.tier,
                    state=State.QUEUED,
                    request_id=new.request_id,
                    request_digest=new.request_digest,
                    fingerprint=new.fingerprint,
                    spec=new.spec,
                    cost=new.cost,
                    start_tag=work_tags.start,
                    rank=rank(start_tag=work_tags.start, created=now),
                    created=now,
                    last_sequence=1,
                    traceparent=new.traceparent,
                    follows=source.id if source is not None and in_flight else None,
                )
                .returning(*generations.c)
            )
        ).one()
        job = Job.from_row(row)
        first = {"generation_id": job.id, "sequence": 1, "epoch": 0, "owner": "", "created": now}
        await connection.execute(insert(events).values(**first, payload=queued_event(job)))
        connection.ring(QUEUE_TOPIC)
        if source is not None and not in_flight:
            job = await answer(connection, job, source=source, now=now, story=self._story)
        return job

    async def _equal(self, connection: Connection, new: NewJob) -> Job | None:
        """A generation with the same clip: the latest that is finished, or one in flight; locked until the commit."""
        query = (
            select(generations)
            .where(
                generations.c.tenant == new.tenant,
                generations.c.fingerprint == new.fingerprint,
                generations.c.state.in_([State.SUCCEEDED, State.QUEUED, State.RUNNING]),
                generations.c.follows.is_(None),
            )
            .order_by(generations.c.state.desc(), generations.c.id.desc())
            .limit(1)
        )
        row = (await connection.execute(query.with_for_update())).one_or_none()
        return None if row is None else Job.from_row(row)

    async def get(self, generation_id: str, tenant: str) -> Job:
        """One generation. Raises `UnknownGeneration`."""
        query = select(generations).where(generations.c.id == generation_id, generations.c.tenant == tenant)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise UnknownGeneration(generation_id)
        return Job.from_row(row)

    async def page(self, tenant: str, *, states: Collection[State], before: str | None, limit: int) -> list[Job]:
        """At most `limit` generations, newest first, older than the id `before`."""
        query = select(generations).where(generations.c.tenant == tenant)
        if states:
            query = query.where(generations.c.state.in_(states))
        if before is not None:
            query = query.where(generations.c.id < before)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(generations.c.id.desc()).limit(limit))
            return [Job.from_row(row) for row in rows]

    async def events(self, generation_id: str, *, after: int, limit: int) -> Sequence[StoredEvent]:
        """At most `limit` events with a sequence greater than `after`, in order."""
        asked = {"watched": generation_id, "cursor": after, "most": limit}
        async with self._database.read() as connection:
            return [StoredEvent(**row._asdict()) for row in await connection.run(EVENTS_AFTER, asked)]

    async def preview(self, generation_id: str) -> tuple[int, bytes] | None:
        """Version and payload of the latest preview of a running generation."""
        query = select(previews.c.version, previews.c.payload).where(previews.c.generation_id == generation_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.version, row.payload)

    async def cancel(self, generation_id: str, tenant: str) -> Job:
        """Cancel: at once if queued; if running, ask its owner to. What has ended stays as it ended.

        Raises `UnknownGeneration`.
        """
        now = self._clock()
        async with self._database.write() as connection:
            mine = (generations.c.id == generation_id) & (generations.c.tenant == tenant)
            query = select(generations).where(mine)
            row = (await connection.execute(query.with_for_update())).one_or_none()
            if row is None:
                raise UnknownGeneration(generation_id)
            job = Job.from_row(row)
            if job.state is State.QUEUED:
                ended = await end(
                    self._database,
                    connection,
                    generation_id=generation_id,
                    lease=None,
                    outcome=Outcome(state=State.CANCELLED),
                    now=now,
                    story=self._story,
                )
                job = ended or job
            elif job.state is State.RUNNING:
                await connection.execute(update(generations).where(mine).values(cancel_requested=True))
            connection.ring(topic(generation_id), topic(generation_id, "cancel"))
        return job

    async def delete(self, generation_id: str, tenant: str) -> bool:
        """Delete a generation that has ended, and its events; False if it is live. Raises `UnknownGeneration`."""
        mine = (generations.c.id == generation_id) & (generations.c.tenant == tenant)
        async with self._database.write() as connection:
            state = (await connection.execute(select(generations.c.state).where(mine))).scalar_one_or_none()
            if state is None:
                raise UnknownGeneration(generation_id)
            if state not in TERMINAL:
                return False
            await connection.execute(delete(generations).where(mine))
        return True

    async def expire(self, *, before: float) -> int:
        """Delete the generations that ended before `before`, and their events; how many."""
        old = generations.c.state.in_(TERMINAL) & (generations.c.ended < before)
        some = select(generations.c.id).where(old).limit(EXPIRED_AT_ONCE)
        expired = 0
        while True:
            async with self._database.write() as connection:
                gone = await connection.execute(delete(generations).where(generations.c.id.in_(some)))
            expired += gone.rowcount
            if gone.rowcount < EXPIRED_AT_ONCE:
                return expired
            await asyncio.sleep(0)

    async def artifact_keys(self) -> set[str]:
        """Keys of all objects that some generation names."""
        columns = (generations.c.clip, generations.c.outputs, generations.c.checkpoint, generations.c.conditioning)
        async with self._database.read() as connection:
            return {
                key
                for column in columns
                for keys in (await connection.execute(select(column).where(column.is_not(None)))).scalars()
                for key in keys.split()
            }

    async def backlog(
        self, *, tier: int, before: float
    ) -> tuple[Backlog, Mapping[int, Backlog], Mapping[int, Backlog]]:
        """Queued work: ahead of rank `before` in `tier`, and in the other tiers; and what runs, by tier."""
        ahead = case((generations.c.tier != tier, 1), (generations.c.rank < before, 1), else_=0)
        queued = (
            select(
                generations.c.tier,
                func.sum(ahead).label("number"),
                func.sum(ahead * generations.c.cost).label("cost"),
            )
            .where(QUEUED, generations.c.follows.is_(None))
            .group_by(generations.c.tier)
        )
        left = func.sum(generations.c.cost * (1.0 - generations.c.progress))
        running = (
            select(generations.c.tier, func.count().label("number"), left.label("cost"))
            .where(RUNNING)
            .group_by(generations.c.tier)
        )
        async with self._database.read() as connection:
            found, now = (
                {row.tier: Backlog(count=int(row.number), cost=float(row.cost)) for row in rows}
                for rows in (await connection.execute(queued), await connection.execute(running))
            )
        return found.pop(tier, Backlog()), found, now

    async def population(self) -> Mapping[tuple[int, State], int]:
        """How many generations wait and run, by tier and state."""
        counts = [
            select(generations.c.tier, generations.c.state, func.count().label("number"))
            .where(live)
            .group_by(generations.c.tier, generations.c.state)
            for live in (QUEUED, RUNNING)
        ]
        async with self._database.read() as connection:
            return {(row.tier, State(row.state)): row.number for row in await connection.execute(union_all(*counts))}

    async def queued_count(self, tenant: str | None = None) -> int:
        """Generations that wait, of one tenant or of all."""
        query = select(func.count()).select_from(generations).where(QUEUED)
        if tenant is not None:
            query = query.where(generations.c.tenant == tenant)
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def secret(self, name: str) -> bytes:
        """A random key of 32 bytes that all gateways of this database share."""
        async with self._database.write() as connection:
            upsert = self._database.upsert(secrets)
            await connection.execute(
                upsert.values(name=name, value=entropy.token_bytes(32)).on_conflict_do_nothing(index_elements=["name"])
            )
            value = await connection.execute(select(secrets.c.value).where(secrets.c.name == name))
            return bytes(value.scalar_one())
