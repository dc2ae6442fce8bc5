"""The chain: a source and its stages, run at the same time on threads of their own, joined by bounded queues."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from services.model.device import DeviceThread
from services.postprocess.frames import Frames, Stage

SOURCE = "decode"
"""What the source does, as it is called in traces."""

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

    def __init__(
        self, device: DeviceThread, source: Generator[Frames, None, None], stages: Sequence[Stage[Any]]
    ) -> None:
        self._device = device
        self._source = source
        self._stages = tuple(stages)
        self.work: list[Work] = []

    async def items(self) -> AsyncGenerator[Any, None]:
        """Run; give a `Work` for each chunk that the source made, and whatever the last stage gives.

        Closing this early ends every stage after the item that it has in hand; all threads are idle when it returns. A
        stage that breaks ends the others and raises `StageFailed`.
        """
        outputs: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
        run = asyncio.create_task(self._run(outputs))
        try:
            while not run.done() or not outputs.empty():
                following = asyncio.ensure_future(outputs.get())
                await asyncio.wait({following, run}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    yield following.result()
                else:
                    following.cancel()
            await run
        except ExceptionGroup as broken:
            raise broken.exceptions[0] from broken.exceptions[0].__cause__
        finally:
            run.cancel()
            await asyncio.wait({run})

    async def _run(self, outputs: asyncio.Queue[Any]) -> None:
        async with AsyncExitStack() as threads:
            workers = [await threads.enter_async_context(DeviceThread.open(stage.name)) for stage in self._stages]
            async with asyncio.TaskGroup() as group:
                queue: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
                group.create_task(self._read_source(queue, outputs))
                for index, (stage, worker) in enumerate(zip(self._stages, workers, strict=True), start=1):
                    following = outputs if index == len(self._stages) else asyncio.Queue(_DEPTH)
                    group.create_task(self._drive(stage, worker, queue, following))
                    queue = following

    async def _read_source(self, following: asyncio.Queue[Any], outputs: asyncio.Queue[Any]) -> None:
        source = self._device.iterate(_measured(self._source))
        try:
            async for frames, work in source:
                self.work.append(work)
                await outputs.put(work)
                await following.put(frames)
        except Exception as broken:
            raise StageFailed(SOURCE) from broken
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
                given, work = await worker.run(_pass, stage, item)
            except Exception as broken:
                raise StageFailed(stage.name) from broken
            self.work.append(work)
            for each in given:
                await following.put(each)
        if stage is not self._stages[-1]:
            await following.put(_END)


def _measured(source: Generator[Frames, None, None]) -> Generator[tuple[Frames, Work], None, None]:
    """`source`, each item timed on the thread that computes it."""
    try:
        while True:
            start = time.monotonic()
            frames = next(source, None)
            if frames is None:
                return
            yield frames, Work(stage=SOURCE, start=start, duration=time.monotonic() - start, frames=frames.count)
    finally:
        source.close()


def _pass(stage: Stage[Any], item: Any) -> tuple[list[Any], Work]:
    """What `stage` gives for `item`, all of it computed here, on the stage's own thread."""
    start = time.monotonic()
    given = list(stage.flush() if item is _END else stage.push(item))
    frames = 0 if item is _END else item.count
    return given, Work(stage=stage.name, start=start, duration=time.monotonic() - start, frames=frames)
