"""What is past its retention goes, with its events and objects; what anything names stays."""

import time

import pytest

from services.gateway import housekeeping as module
from services.gateway.artifacts import Artifacts
from services.gateway.housekeeping import Housekeeping
from services.gateway.store import jobs as jobs_module
from services.gateway.store.database import Database
from services.gateway.store.job import Outcome, UnknownGeneration
from services.gateway.store.transitions import State
from tests.gateway.store_on_a_clock import Store

HOUR = 3600.0


@pytest.fixture
def artifacts(tmp_path) -> Artifacts:
    return Artifacts.open(str(tmp_path / "artifacts"))


def housekeeping(store: Store, artifacts: Artifacts) -> Housekeeping:
    """Kept for a day, on the clock of the store."""
    return Housekeeping(store.jobs, artifacts, retention_seconds=24 * HOUR, interval_seconds=1.0, clock=store.clock)


async def there(artifacts: Artifacts, *keys: str) -> list[bool]:
    """Which of the objects are still there."""
    kept = set()
    for kind in module.KINDS:
        kept |= set(await artifacts.older(kind, before=module.datetime.now(module.UTC) + module.timedelta(days=999)))
    return [key in kept for key in keys]


async def ended(store: Store, artifacts: Artifacts, content: bytes) -> tuple[str, str, str]:
    """A generation that has succeeded: its id, its clip, and another file made of it."""
    job = await store.create()
    lease, _ = await store.claim()
    clip, other = await artifacts.put("clips", content), await artifacts.put("clips", content + b" as gif")
    await store.leases.finish(lease, Outcome(state=State.SUCCEEDED, clip=clip, outputs=f"{clip} {other}"))
    return job.id, clip, other


async def test_what_ended_long_ago_goes_with_its_events_and_files(database: Database, artifacts, monkeypatch):
    monkeypatch.setattr(jobs_module, "EXPIRED_AT_ONCE", 2)
    store = Store(database)
    store.clock.now = time.time()
    old = [await ended(store, artifacts, b"old %d" % number) for number in range(5)]
    store.clock.now += 23 * HOUR
    young = await ended(store, artifacts, b"young")
    store.clock.now += 2 * HOUR
    await housekeeping(store, artifacts).clear()
    for name, clip, other in old:
        with pytest.raises(UnknownGeneration):
            await store.jobs.get(name, "a")
        assert await store.jobs.events(name, after=0, limit=9) == []
        assert await there(artifacts, clip, other) == [False, False]
    assert (await store.jobs.get(young[0], "a")).state is State.SUCCEEDED
    assert await there(artifacts, *young[1:]) == [True, True]


async def test_checkpoints_go_when_their_generation_ends_and_orphans_once_they_are_old(database: Database, artifacts):
    store = Store(database)
    store.clock.now = time.time()
    await store.create()
    lease, job = await store.claim()
    state = await artifacts.put("checkpoints", b"state")
    text = await artifacts.put("conditioning", b"text")
    orphan = await artifacts.put("checkpoints", b"superseded")
    await store.leases.append(
        lease, [b"step"], after=job.last_sequence, changes={"checkpoint": state, "conditioning": text}
    )
    keeper = housekeeping(store, artifacts)
    store.clock.now += 0.5 * HOUR
    await keeper.clear()
    assert await there(artifacts, state, text, orphan) == [True, True, True]
    store.clock.now += HOUR
    await keeper.clear()
    assert await there(artifacts, state, text, orphan) == [True, True, False]
    await store.leases.finish(lease, Outcome(state=State.CANCELLED))
    await keeper.clear()
    assert await there(artifacts, state, text) == [False, False]
