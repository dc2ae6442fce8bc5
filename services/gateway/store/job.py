"""The values that go into the job store and come out of it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from services.chassis.errors import AlreadyExists, NotFound, Resource
from services.gateway.store.transitions import TERMINAL, State


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A generation to be queued. `cost` is its predicted device-seconds, `weight` its tenant's share in the tier."""

    id: str
    tenant: str
    tier: int
    request_id: str
    request_digest: str
    fingerprint: str
    spec: bytes
    cost: float
    traceparent: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A generation as it stands; `spec`, `failure`, `video` and `latency` are serialised messages of `rushes.v1`.

    `attempt` counts the times work was begun, `losses` those that ended with an expired lease, and `requeued` is why
    the last one that did not end the generation was over.
    """

    id: str
    tenant: str
    tier: int
    state: State
    request_id: str
    request_digest: str
    fingerprint: str
    spec: bytes
    cost: float
    start_tag: float
    rank: float
    created: float
    not_before: float
    started: float | None
    ended: float | None
    attempt: int
    losses: int
    requeued: str | None
    lease_owner: str | None
    lease_epoch: int
    lease_until: float | None
    cancel_requested: bool
    last_sequence: int
    progress: float
    steps_run: int
    checkpoint: str | None
    conditioning: str | None
    checkpoint_step: int
    clip: str | None
    outputs: str | None
    cached_from: str | None
    follows: str | None
    failure: bytes | None
    video: bytes | None
    latency: bytes | None
    traceparent: str

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Job":
        """The job of a row of the table `generations`, whose columns are the fields."""
        return cls(**{**row._asdict(), "state": State(row.state)})

    @property
    def terminal(self) -> bool:
        """Whether the generation has ended."""
        return self.state in TERMINAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to work on a generation: every write under it carries its epoch, and is refused once that is past."""

    id: str
    owner: str
    epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvent:
    """One event of the history: a serialised `rushes.v1.GenerationEvent`, without its sequence."""

    sequence: int
    epoch: int
    owner: str
    created: float
    payload: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What a generation used, metered once, when it ends."""

    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    render_seconds: float = 0.0
    pixels: int = 0
    frames: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a generation ends."""

    state: State
    failure: bytes | None = None
    video: bytes | None = None
    latency: bytes | None = None
    clip: str | None = None
    outputs: str | None = None
    steps_run: int | None = None
    charge: Charge = Charge()


class LeaseLost(Exception):
    """The lease is no longer held: another owner, a reaper or a cancellation has taken the generation."""


class RequestIdReused(AlreadyExists):
    """The request id was used with another request."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, first: str) -> None:
        """`first` is the id of the generation that the request id made."""
        super().__init__(resource=Resource(kind="generation", name=first), metadata={"generation_id": first})
        self.first = first


class UnknownGeneration(NotFound):
    """There is no generation of this id."""

    reason = "GENERATION_NOT_FOUND"

    def __init__(self, generation_id: str) -> None:
        super().__init__(resource=Resource(kind="generation", name=generation_id))
