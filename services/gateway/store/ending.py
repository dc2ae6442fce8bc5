"""The one way into a terminal state: state, terminal event and charge in one transaction."""

from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.gateway.store.job import Job, Lease, Outcome
from services.gateway.store.tables import events, generations, previews, usage
from services.gateway.store.transitions import TERMINAL, State, sources

EventOf = Callable[[Job], bytes]
"""Makes the serialised event that a change of a job writes, from the job after the change."""


async def end(
    connection: AsyncConnection,
    *,
    generation_id: str,
    lease: Lease | None,
    outcome: Outcome,
    now: float,
    terminal_event: EventOf,
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
            payload=terminal_event(job),
        )
    )
    if job.started is not None:
        await connection.execute(delete(previews).where(previews.c.generation_id == generation_id))
        await connection.execute(
            insert(usage).values(
                generation_id=generation_id, tenant=job.tenant, tier=job.tier, ended=now, **asdict(outcome.charge)
            )
        )
    return job
