"""Reads the event log after a test, and proves what must hold whatever happened."""

from itertools import pairwise

from sqlalchemy import select

from services.gateway.store.database import Database
from services.gateway.store.tables import events, generations, usage
from services.gateway.store.transitions import TERMINAL

TERMINAL_KINDS = {"succeeded", "failed", "cancelled"}


async def check_histories(database: Database, kind_of, *, all_ended: bool = False) -> int:
    """Check every generation; `kind_of` names the event of a payload. Returns the number of generations."""
    async with database.read() as connection:
        jobs = (await connection.execute(select(generations))).all()
        for job in jobs:
            query = select(events).where(events.c.generation_id == job.id).order_by(events.c.sequence)
            log = (await connection.execute(query)).all()
            charges = (await connection.execute(select(usage).where(usage.c.generation_id == job.id))).all()
            _check(job, log, charges, kind_of)
            assert not all_ended or job.state in TERMINAL, f"{job.id} never ended"
    return len(jobs)


def _check(job, log, charges, kind_of) -> None:
    sequences = [event.sequence for event in log]
    assert sequences == list(range(1, job.last_sequence + 1)), f"{job.id}: sequences are not dense: {sequences}"
    kinds = [kind_of(event.payload) for event in log]
    terminal = [index for index, kind in enumerate(kinds) if kind in TERMINAL_KINDS]
    ended = job.state in TERMINAL
    assert terminal == ([len(log) - 1] if ended else []), f"{job.id}: terminal events at {terminal} of {kinds}"
    assert all(one.epoch <= other.epoch for one, other in pairwise(log)), f"{job.id}: an older epoch wrote later"
    owners: dict[int, set[str]] = {}
    for event in log:
        if event.owner:  # Without an owner it is a caller's: a cancellation of what waits again after a lease.
            owners.setdefault(event.epoch, set()).add(event.owner)
    assert all(len(names) == 1 for names in owners.values()), f"{job.id}: two owners in one epoch: {owners}"
    assert len(charges) == (1 if ended and job.started is not None else 0), f"{job.id}: charges {charges}"
