"""The history checker: what must hold of every event log, whatever happened on the way."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from rushes.v1.generation_pb2 import GenerationEvent
from services.gateway.store.transitions import State

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


def check_history(events: Sequence[GenerationEvent]) -> None:
    """Sequences are dense from 1, the terminal event is one and the last, steps never skip ahead."""
    durable = [event for event in events if event.sequence]
    assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
    kinds = [event.WhichOneof("event") for event in durable]
    assert sum(kind in TERMINAL for kind in kinds) == 1
    assert kinds[-1] in TERMINAL
    reached = 0
    for event in durable:
        if event.WhichOneof("event") == "denoising":
            # What an earlier generation ran is not run again.
            reached = max(reached, event.denoising.reused_steps)
        if event.WhichOneof("event") == "retaken":
            reached = 0
        if event.WhichOneof("event") == "step":
            assert event.step.index <= reached, "a step was skipped"
            reached = max(reached, event.step.index + 1)


def check_database(path: Path) -> None:
    """Every accepted generation is in a terminal state, and no lease on it is left."""
    with sqlite3.connect(path) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM generations")]
        held = connection.execute("SELECT id, lease_until FROM generations WHERE lease_until IS NOT NULL").fetchall()
    assert states
    assert set(states) <= {State.SUCCEEDED, State.FAILED, State.CANCELLED}
    assert held == []
