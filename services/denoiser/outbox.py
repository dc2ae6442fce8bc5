"""What a run has to say, kept for a caller that may read slowly, in memory that does not grow with the run."""

import asyncio
import enum
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias

from services.denoiser.experts import Expert
from services.denoiser.previews import Picture
from services.denoiser.spans import Spans


class Reason(enum.Enum):
    """Why a bundle is sent, and how a run ended."""

    COMPLETED = enum.auto()
    CHECKPOINT = enum.auto()
    BOUNDARY = enum.auto()
    RANGE_END = enum.auto()
    DRAINED = enum.auto()
    PREEMPTED = enum.auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """A finished step."""

    index: int
    expert: Expert
    sigma: float
    timestep: float
    seconds: float
    eta_seconds: float
    sharers: int = 1
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A packed bundle: finished latents if `reason` is COMPLETED, the solver state otherwise."""

    reason: Reason
    next_step: int
    payload: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """The last word of a run."""

    reason: Reason
    next_step: int
    steps_run: int
    steps_shared: int
    guidance_split: bool
    device_seconds: float
    previews_dropped: int
    spans: Spans
    steps_cached: int = 0


Item: TypeAlias = StepReport | Parcel | Picture | Ending


class Outbox:
    """A queue between the run, which never waits here, and the caller's stream.

    Reports and the last bundle are delivered, in order. Of previews and of checkpoints the newest is kept and an older
    one that was not taken yet is dropped.
    """

    def __init__(self) -> None:
        self._queue: deque[Item] = deque()
        self._checkpoint: Parcel | None = None
        self._picture: Picture | None = None
        self._closed = False
        self._changed = asyncio.Event()
        self.pictures_dropped = 0

    def put(self, item: Item) -> None:
        """Add something that must be delivered. A last bundle makes a waiting checkpoint worthless."""
        if isinstance(item, Parcel):
            self._checkpoint = None
        self._queue.append(item)
        self._changed.set()

    def put_checkpoint(self, parcel: Parcel) -> None:
        """Offer a checkpoint."""
        self._checkpoint = parcel
        self._changed.set()

    def put_picture(self, picture: Picture) -> None:
        """Offer a preview."""
        if self._picture is not None:
            self.pictures_dropped += 1
        self._picture = picture
        self._changed.set()

    def close(self) -> None:
        """Nothing more will come: the iteration ends when all is taken."""
        self._closed = True
        self._changed.set()

    async def items(self) -> AsyncGenerator[Item, None]:
        """Everything, until closed and empty."""
        while True:
            item = self._take()
            if item is not None:
                yield item
            elif self._closed:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def _take(self) -> Item | None:
        # An ending is the last message: what else there is goes before it.
        if self._queue and not isinstance(self._queue[0], Ending):
            return self._queue.popleft()
        if self._checkpoint is not None:
            item, self._checkpoint = self._checkpoint, None
            return item
        if self._picture is not None:
            picture, self._picture = self._picture, None
            return picture
        return self._queue.popleft() if self._queue else None
