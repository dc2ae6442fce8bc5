"""Watching by cursor: one tail per generation and process reads the history once, for all its watchers.

Durable events come out of the store only, and so are written before they are sent. A watcher holds nothing but its
cursor: one that falls behind the tail reads the store for itself, and slows nobody. An event is serialised once, and
the tail keeps time for the heartbeats: what is left to do for each of a thousand watchers is to send.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, Self

from rushes.v1 import denoiser_pb2, generation_pb2
from services.gateway import views
from services.gateway.store.job import UnknownGeneration
from services.gateway.store.jobs import JobStore
from services.gateway.store.notifications import Notifications
from services.gateway.store.topics import topic

TAIL_EVENTS = 256
TAIL_BYTES = 8 * 2**20
PAGE = 16
"""Events that are read at once: fragments of up to 1 MiB among them."""
POLL_SECONDS = 1.0
"""How long a tail trusts its bell: one that another process rings may be lost with its connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """An event as watchers get it. `sequence` is 0 for one that is not durable.

    `response` is a serialised `GenerateResponse`, which is a `WatchGenerationResponse` too.
    """

    sequence: int
    terminal: bool
    response: bytes

    @classmethod
    def of(cls, event: generation_pb2.GenerationEvent) -> "Shown":
        """Serialise an event."""
        response = generation_pb2.GenerateResponse(event=event).SerializeToString()
        return cls(sequence=event.sequence, terminal=views.is_terminal(event), response=response)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatestPreview:
    """The newest preview, and how many there were."""

    version: int
    preview: denoiser_pb2.Preview


class Previews:
    """The newest preview of every running generation of this process."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications
        self._latest: dict[str, LatestPreview] = {}

    def publish(self, generation_id: str, preview: denoiser_pb2.Preview) -> LatestPreview:
        """Replace the newest preview."""
        known = self._latest.get(generation_id)
        latest = LatestPreview(version=known.version + 1 if known else 1, preview=preview)
        self._latest[generation_id] = latest
        self._notifications.ring(topic(generation_id))
        return latest

    def subscribe(self, generation_id: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        """A bell that rings when a preview is published, and now and then without need."""
        return self._notifications.subscribe(topic(generation_id))

    def latest(self, generation_id: str) -> LatestPreview | None:
        """The newest preview, if there is one."""
        return self._latest.get(generation_id)

    def forget(self, generation_id: str) -> None:
        """Drop the preview of a generation that no longer runs here."""
        self._latest.pop(generation_id, None)


class _Tail:
    """The end of one history, as far as this process has read it, from a first cursor on."""

    def __init__(
        self,
        generation_id: str,
        *,
        after: int,
        store: JobStore,
        previews: Previews,
        remote_previews: bool,
        heartbeat_seconds: float,
    ) -> None:
        self._id = generation_id
        self._store = store
        self._previews = previews
        self._remote_previews = remote_previews
        self._heartbeat_seconds = heartbeat_seconds
        self._events: deque[Shown] = deque()
        self._bytes = 0
        self._grown = asyncio.Event()
        self._grew = time.monotonic()
        self._drawn: tuple[int, int, Shown] | None = None
        self.beats = 0
        self.watchers = 0
        self.stopped = asyncio.Event()
        self.last = after
        self.ended = False
        self.preview: LatestPreview | None = None
        self.failure: Exception | None = None

    async def follow(self, notifications: Notifications) -> None:
        """Read what is new whenever the bell rings, until the terminal event or until nobody watches."""
        try:
            with notifications.subscribe(topic(self._id)) as bell:
                self.stopped = bell
                while self.watchers and not self.ended:
                    bell.clear()
                    await self._read()
                    if self.watchers and not self.ended:
                        await self._wait(bell)
        except Exception as failed:  # noqa: BLE001 - it is the watchers' to raise
            self.failure = failed
            self._grow()

    async def _wait(self, bell: asyncio.Event) -> None:
        """Wait for the bell, for as long as it is trusted; a tail that was silent for too long beats."""
        silent = self._grew + self._heartbeat_seconds - time.monotonic()
        # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(POLL_SECONDS, max(0.0, silent))):
                await bell.wait()
        if time.monotonic() - self._grew >= self._heartbeat_seconds:
            self.beats += 1
            self._grow()

    def since(self, cursor: int) -> list[Shown] | None:
        """The events after `cursor`; None if the tail does not reach back that far."""
        if cursor >= self.last:
            return []
        if not self._events or self._events[0].sequence > cursor + 1:
            return None
        skip = cursor + 1 - self._events[0].sequence
        return list(itertools.islice(self._events, skip, skip + PAGE))

    def drawn(self, preview: LatestPreview, dropped: int) -> Shown:
        """A preview for a viewer that has missed `dropped`; viewers of one pace share it."""
        if self._drawn is None or self._drawn[:2] != (preview.version, dropped):
            event = _preview_event(self._id, preview.preview, dropped)
            self._drawn = preview.version, dropped, Shown.of(event)
        return self._drawn[2]

    async def grown(self) -> None:
        """Wait until there is something new, or has been nothing for so long that the tail beats."""
        await self._grown.wait()

    async def _read(self) -> None:
        before = self.last, self.preview
        more = True
        while more:
            stored = await self._store.events(self._id, after=self.last, limit=PAGE)
            for one in stored:
                self._append(Shown.of(views.stored_event(self._id, one)))
            # What is written after a page that was not full rings the bell again.
            more = len(stored) == PAGE
        self.preview = self._previews.latest(self._id) or await self._remote_preview() or self.preview
        if (self.last, self.preview) != before:
            self._grow()

    async def _remote_preview(self) -> LatestPreview | None:
        if not self._remote_previews or self.ended:
            return None
        found = await self._store.preview(self._id)
        if found is None or (self.preview is not None and self.preview.version == found[0]):
            return None
        return LatestPreview(version=found[0], preview=denoiser_pb2.Preview.FromString(found[1]))

    def _append(self, event: Shown) -> None:
        self._events.append(event)
        self._bytes += len(event.response)
        while len(self._events) > TAIL_EVENTS or (self._bytes > TAIL_BYTES and len(self._events) > 1):
            self._bytes -= len(self._events.popleft().response)
        self.last = event.sequence
        self.ended = event.terminal

    def _grow(self) -> None:
        self._grew = time.monotonic()
        self._grown.set()
        self._grown = asyncio.Event()


class Watches:
    """All the watches of this process; open while they may be begun."""

    def __init__(
        self,
        store: JobStore,
        notifications: Notifications,
        previews: Previews,
        *,
        heartbeat_seconds: float,
        remote_previews: bool,
    ) -> None:
        self._store = store
        self._notifications = notifications
        self._previews = previews
        self._heartbeat_seconds = heartbeat_seconds
        self._remote_previews = remote_previews
        self._tails: dict[str, _Tail] = {}
        self._followers = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._followers.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        for tail in self._tails.values():
            tail.watchers = 0
            tail.stopped.set()
        await self._followers.__aexit__(*raised)

    async def watch(self, generation_id: str, *, after: int) -> AsyncGenerator[Shown, None]:
        """Every durable event after the cursor, previews and heartbeats, until the terminal event."""
        cursor, seen, dropped = after, 0, 0
        with self._tail(generation_id, after) as tail:
            heard = tail.beats
            while True:
                if tail.failure is not None:
                    raise tail.failure
                events = tail.since(cursor)
                if events is None:
                    events = await self._catch_up(generation_id, cursor)
                for event in events:
                    yield event
                    cursor = event.sequence
                    if event.terminal:
                        return
                latest = tail.preview
                if latest is not None and latest.version > seen:
                    dropped += latest.version - seen - 1 if seen else 0
                    seen = latest.version
                    yield tail.drawn(latest, dropped)
                elif tail.beats > heard and not events:
                    yield Shown.of(_heartbeat_event(generation_id))
                elif not events:
                    await tail.grown()
                    continue
                heard = tail.beats

    async def _catch_up(self, generation_id: str, cursor: int) -> list[Shown]:
        # Shielded: a watcher that goes away in the middle leaves no connection behind in an unknown state.
        stored = await asyncio.shield(self._store.events(generation_id, after=cursor, limit=PAGE))
        if not stored:
            raise UnknownGeneration(generation_id)
        return [Shown.of(views.stored_event(generation_id, one)) for one in stored]

    @contextlib.contextmanager
    def _tail(self, generation_id: str, after: int) -> Iterator[_Tail]:
        """The tail of a generation, followed while anybody watches it."""
        tail = self._tails.get(generation_id)
        if tail is None or tail.failure is not None:
            tail = self._tails[generation_id] = _Tail(
                generation_id,
                after=after,
                store=self._store,
                previews=self._previews,
                remote_previews=self._remote_previews,
                heartbeat_seconds=self._heartbeat_seconds,
            )
            tail.watchers = 1
            self._followers.create_task(tail.follow(self._notifications), name=f"tail-{generation_id}")
        else:
            tail.watchers += 1
        try:
            yield tail
        finally:
            tail.watchers -= 1
            if tail.watchers <= 0:
                tail.stopped.set()
                if self._tails.get(generation_id) is tail:
                    del self._tails[generation_id]


def _preview_event(generation_id: str, preview: denoiser_pb2.Preview, dropped: int) -> generation_pb2.GenerationEvent:
    return generation_pb2.GenerationEvent(
        generation_id=generation_id,
        time=views.timestamp(time.time()),
        preview=generation_pb2.PreviewEvent(preview=preview, dropped=dropped),
    )


def _heartbeat_event(generation_id: str) -> generation_pb2.GenerationEvent:
    return generation_pb2.GenerationEvent(
        generation_id=generation_id,
        time=views.timestamp(time.time()),
        heartbeat=generation_pb2.HeartbeatEvent(),
    )
