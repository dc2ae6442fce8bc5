"""Both halves of the job store on a clock that only the test moves."""

from services.gateway.fair_queue import TIERS
from services.gateway.store.database import Database
from services.gateway.store.ending import Story
from services.gateway.store.job import Job, Lease, NewJob
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import LeaseStore


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def event(job: Job) -> bytes:
    return job.state.name.lower().encode()


STORY = Story(terminal=event, replayed=lambda payloads: [payload for payload in payloads if payload == b"fragment"])


class Store:
    """Both halves of the store on one clock."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.jobs = JobStore(database, clock=self.clock, story=STORY)
        self.leases = LeaseStore(database, tiers=TIERS, lease_seconds=10, clock=self.clock, story=STORY)
        self._made = 0

    async def create(
        self, *, tenant: str = "a", tier: int = 2, request_id: str | None = None, digest: str = "d"
    ) -> Job:
        self._made += 1
        new = NewJob(
            id=f"g{self._made:06d}",
            tenant=tenant,
            tier=tier,
            request_id=request_id or f"r{self._made}",
            request_digest=digest,
            fingerprint="f",
            spec=b"spec",
            cost=1.0,
            traceparent="t",
        )
        return (await self.jobs.create(new, queued_event=event))[0]

    async def claim(self, owner: str = "me") -> tuple[Lease, Job] | None:
        return await self.leases.claim(owner, started_event=lambda job: f"claimed {job.attempt}".encode())

    async def reap(self, max_losses: int = 3) -> list[Job]:
        return await self.leases.reap(max_losses=max_losses, back_off=lambda _: 0.0, failure=lambda _: b"lost")
