"""The one way into a terminal state: state, terminal event and charge in one transaction."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.gateway.store.database import Database
from services.gateway.store.job import Job, Lease, Outcome
from services.gateway.store.tables import events, generations, previews, usage
from services.gateway.store.topics import QUEUE_TOPIC, topic
from services.gateway.store.transitions import TERMINAL, State, sources

EventOf = Callable[[Job], bytes]
"""Makes the serialised event that a change of a job writes, from the job after the change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """How the history is told: the terminal event of a job, and which events a cached answer repeats."""

    terminal: EventOf
    replayed: Callable[[bytes], bool]


async def end(
    database: Database,
    connection: AsyncConnection,
    *,
    generation_id: str,
    lease: Lease | None,
    outcome: Outcome,
    now: float,
    story: Story,
) -> Job | None:
    """End the generation, under its lease if one is given; None if it had ended or the lease is past."""
    if outcome.state not in TERMINAL:
        raise ValueError(f"{outcome.state.name} is not a terminal state")
    condition = (generations.c.id == generation_id) & generations.c.state.in_(sources(outcome.state))
    if lease is not None:
        condition &= (generations.c.state == State.RUNNING) & (generations.c.lease_epoch == lease.epoch)
    values: dict[str, object] = {
        "state": outcome.state,
        "ended": now,
        "lease_owner": None,
        "lease_until": None,
        "last_sequence": generations.c.last_sequence + 1,
        "failure": outcome.failure,
        "video": outcome.video,
        "latency": outcome.latency,
        "clip": outcome.clip,
        "checkpoint": None,
        "conditioning": None,
    }
    if outcome.steps_run is not None:
        values["steps_run"] = outcome.steps_run
    if outcome.state is State.SUCCEEDED:
        values["progress"] = 1.0
    row = (
        await connection.execute(update(generations).where(condition).values(values).returning(*generations.c))
    ).one_or_none()
    if row is None:
        return None
    job = Job.from_row(row)
    await connection.execute(
        insert(events).values(
            generation_id=generation_id,
            sequence=job.last_sequence,
            epoch=job.lease_epoch,
            owner=lease.owner if lease is not None else "",
            created=now,
            payload=story.terminal(job),
        )
    )
    if job.started is not None:
        await connection.execute(delete(previews).where(previews.c.generation_id == generation_id))
        await connection.execute(
            insert(usage).values(
                generation_id=generation_id, tenant=job.tenant, tier=job.tier, ended=now, **asdict(outcome.charge)
            )
        )
    await database.ring(connection, topic(job.id))
    await _free_followers(database, connection, job, now=now, story=story)
    return job


async def _free_followers(
    database: Database, connection: AsyncConnection, job: Job, *, now: float, story: Story
) -> None:
    """What waited for this clip gets it; if there is none, it is queued for itself."""
    following = (generations.c.follows == job.id) & (generations.c.state == State.QUEUED)
    if job.state is State.SUCCEEDED:
        for row in (await connection.execute(select(generations).where(following))).all():
            await answer(database, connection, Job.from_row(row), source=job, now=now, story=story)
        return
    freed = update(generations).where(following).values(follows=None).returning(generations.c.id)
    if (await connection.execute(freed)).all():
        await database.ring(connection, QUEUE_TOPIC)


async def answer(
    database: Database, connection: AsyncConnection, job: Job, *, source: Job, now: float, story: Story
) -> Job:
    """End a queued generation with the clip of another, whose fragments and stills become its own history."""
    query = select(events.c.payload).where(events.c.generation_id == source.id).order_by(events.c.sequence)
    payloads = [row.payload for row in await connection.execute(query) if story.replayed(row.payload)]
    row = (
        await connection.execute(
            update(generations)
            .where(generations.c.id == job.id, generations.c.state == State.QUEUED)
            .values(
                state=State.SUCCEEDED,
                ended=now,
                progress=1.0,
                video=source.video,
                clip=source.clip,
                cached_from=source.id,
                follows=None,
                last_sequence=job.last_sequence + len(payloads) + 1,
            )
            .returning(*generations.c)
        )
    ).one()
    ended = Job.from_row(row)
    written = {"generation_id": job.id, "epoch": job.lease_epoch, "owner": "", "created": now}
    told = [*payloads, story.terminal(ended)]
    await connection.execute(
        insert(events),
        [
            {**written, "sequence": job.last_sequence + place, "payload": payload}
            for place, payload in enumerate(told, start=1)
        ],
    )
    await database.ring(connection, topic(job.id))
    return ended
