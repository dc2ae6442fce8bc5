"""The one way into a terminal state: state, terminal event and charge in one transaction."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Float, Integer, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from services.gateway.store.database import Connection, Database
from services.gateway.store.job import Job, Lease, Outcome
from services.gateway.store.tables import events, generations, previews, usage
from services.gateway.store.topics import QUEUE_TOPIC, topic
from services.gateway.store.transitions import TERMINAL, State, sources

EventOf = Callable[[Job], bytes]
"""Makes the serialised event that a change of a job writes, from the job after the change."""


INSERT_EVENT = insert(events)
INSERT_USAGE = insert(usage)
DELETE_PREVIEW = delete(previews).where(previews.c.generation_id == bindparam("key"))
FOLLOWERS = select(generations).where(generations.c.follows == bindparam("leader"), generations.c.state == State.QUEUED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """How the history is told: the terminal event of a job, and which events a cached answer repeats."""

    terminal: EventOf
    replayed: Callable[[Sequence[bytes]], list[bytes]]


async def end(
    database: Database,
    connection: Connection,
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
    parameters: dict[str, object] = {
        "key": generation_id,
        "to": outcome.state,
        "now": now,
        "new_failure": outcome.failure,
        "new_video": outcome.video,
        "new_latency": outcome.latency,
        "new_clip": outcome.clip,
        "new_outputs": outcome.outputs,
        "new_steps_run": outcome.steps_run,
        "done": 1.0 if outcome.state is State.SUCCEEDED else None,
    }
    if lease is not None:
        parameters["lease_number"] = lease.epoch
    statement = _end(outcome.state, fenced=lease is not None)
    rows = await connection.run(statement, parameters)
    if not rows:
        return None
    job = Job.from_row(rows[0])
    owner = lease.owner if lease is not None else ""
    await connection.later(INSERT_EVENT, event_values(job, job.last_sequence, owner, now, story.terminal(job)))
    if job.started is not None:
        if database.postgres:
            await connection.later(DELETE_PREVIEW, {"key": generation_id})
        charge = {"generation_id": generation_id, "tenant": job.tenant, "tier": job.tier, "ended": now}
        await connection.later(INSERT_USAGE, charge | asdict(outcome.charge))
    connection.ring(topic(job.id))
    await _free_followers(connection, job, now=now, story=story)
    return job


def event_values(job: Job, sequence: int, owner: str, created: float, payload: bytes) -> dict[str, object]:
    """What `INSERT_EVENT` needs for one event of a job."""
    return {
        "generation_id": job.id,
        "sequence": sequence,
        "epoch": job.lease_epoch,
        "owner": owner,
        "created": created,
        "payload": payload,
    }


@functools.cache
def _end(state: State, *, fenced: bool) -> ReturningUpdate[Any]:
    """The update that ends a generation; built once, since building takes longer than running."""
    condition = (generations.c.id == bindparam("key")) & or_(
        *(generations.c.state == before for before in sorted(sources(state)))
    )
    if fenced:
        condition &= (generations.c.state == State.RUNNING) & (generations.c.lease_epoch == bindparam("lease_number"))
    return (
        update(generations)
        .where(condition)
        .values(
            state=bindparam("to"),
            ended=bindparam("now"),
            lease_owner=None,
            lease_until=None,
            last_sequence=generations.c.last_sequence + 1,
            failure=bindparam("new_failure"),
            video=bindparam("new_video"),
            latency=bindparam("new_latency"),
            clip=bindparam("new_clip"),
            outputs=bindparam("new_outputs"),
            steps_run=func.coalesce(bindparam("new_steps_run", type_=Integer), generations.c.steps_run),
            progress=func.coalesce(bindparam("done", type_=Float), generations.c.progress),
            checkpoint=None,
            conditioning=None,
        )
        .returning(*generations.c)
    )


async def _free_followers(connection: Connection, job: Job, *, now: float, story: Story) -> None:
    """What waited for this clip gets it; if there is none, it is queued for itself."""
    followers = await connection.run(FOLLOWERS, {"leader": job.id})
    if not followers:
        return
    if job.state is State.SUCCEEDED:
        for row in followers:
            await answer(connection, Job.from_row(row), source=job, now=now, story=story)
        return
    await connection.execute(update(generations).where(generations.c.follows == job.id).values(follows=None))
    connection.ring(QUEUE_TOPIC)


async def answer(connection: Connection, job: Job, *, source: Job, now: float, story: Story) -> Job:
    """End a queued generation with the clip of another, whose fragments and stills become its own history."""
    query = select(events.c.payload).where(events.c.generation_id == source.id).order_by(events.c.sequence)
    payloads = story.replayed([row.payload for row in await connection.execute(query)])
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
                outputs=source.outputs,
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
    connection.ring(topic(job.id))
    return ended
