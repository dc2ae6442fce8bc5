"""The states of a generation and the transitions between them; values are those of `rushes.v1.GenerationState`."""

import enum
from collections.abc import Mapping


class State(enum.IntEnum):
    """State of a generation."""

    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""QUEUED to SUCCEEDED is an answer from the cache; RUNNING to QUEUED is a lost, released or preempted lease."""

TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)


def sources(target: State) -> list[State]:
    """The states from which `target` may be entered."""
    return [state for state, following in TRANSITIONS.items() if target in following]
