"""The chain: a source and its stages, run at the same time on threads of their own, joined by bounded queues."""

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from services.model.device import DeviceThread
from services.postprocess.frames import Frames, Stage

_DEPTH = 2
_END = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One measured piece of work: which stage, when it began and how long it took, in seconds of `time.monotonic`.

    `frames` is the number of frames that it was about.
    """

    stage: str
    start: float
    duration: float
    frames: int


class StageFailed(Exception):
    """A stage broke on the clip; the cause is chained. `stage` is its name."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"the stage {stage} failed")
        self.stage = stage


class Chain:
    """Frames from `source`, through `stages`, to whatever the last stage gives; one clip, used once.

    The source runs on the device's thread and each stage on its own, so that a chunk is encoded while the next one is
    decoded. At most two items wait between neighbours: a slow stage holds back everything before it, down to the
    source, and memory does not depend on the length of the clip.
    """

    def __init__(self, device: DeviceThread, source: Generator[Frames, None, None], stages: Sequence[Stage[Any]]):
        self._device = device
        self._source = source
        self._stages = tuple(stages)
        self.work: list[Work] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[AsyncIterator[Any]]:
        """Run for the block, which iterates over what the last stage gives.

        Leaving the block early, by an error or a cancellation, ends every stage after the item that it has in hand; all
        threads are idle when this returns. A stage that breaks ends the others and raises `StageFailed` in a group.
        """
        async with AsyncExitStack() as threads:
            workers = [await threads.enter_async_context(DeviceThread.open(stage.name)) for stage in self._stages]
            async with asyncio.TaskGroup() as group:
                queue: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
                tasks = [group.create_task(self._read_source(queue))]
                for stage, worker in zip(self._stages, workers, strict=True):
                    following: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
                    tasks.append(group.create_task(self._drive(stage, worker, queue, following)))
                    queue = following
                try:
                    yield _items(queue)
                finally:
                    for task in tasks:
                        task.cancel()

    def seconds(self, stage: str) -> float:
        """How long `stage` has worked so far."""
        return sum(work.duration for work in self.work if work.stage == stage)

    async def _read_source(self, following: asyncio.Queue[Any]) -> None:
        source = self._device.iterate(_measured(self._source, self.work))
        try:
            async for frames in source:
                await following.put(frames)
        except Exception as broken:
            raise StageFailed("decode") from broken
        finally:
            await source.aclose()
        await following.put(_END)

    async def _drive(
        self, stage: Stage[Any], worker: DeviceThread, queue: asyncio.Queue[Any], following: asyncio.Queue[Any]
    ) -> None:
        item: Any = None
        while item is not _END:
            item = await queue.get()
            try:
                given = await worker.run(self._work, stage, item)
            except Exception as broken:
                raise StageFailed(stage.name) from broken
            for each in given:
                await following.put(each)
        await following.put(_END)

    def _work(self, stage: Stage[Any], item: Any) -> list[Any]:
        """What `stage` gives for `item`, all of it computed here, on the stage's own thread."""
        start = time.monotonic()
        given = list(stage.flush() if item is _END else stage.push(item))
        frames = 0 if item is _END else item.count
        self.work.append(Work(stage=stage.name, start=start, duration=time.monotonic() - start, frames=frames))
        return given


def _measured(source: Generator[Frames, None, None], done: list[Work]) -> Generator[Frames, None, None]:
    """`source`, each item timed on the thread that computes it."""
    try:
        while True:
            start = time.monotonic()
            frames = next(source, None)
            if frames is None:
                return
            done.append(Work(stage="decode", start=start, duration=time.monotonic() - start, frames=frames.count))
            yield frames
    finally:
        source.close()


async def _items(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (item := await queue.get()) is not _END:
        yield item
