import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import aclosing

import numpy as np
import pytest

from services.model.device import DeviceThread
from services.postprocess.chain import Chain, StageFailed, Work
from services.postprocess.frames import Frames
from services.postprocess.timing import busy_seconds, tail_seconds


def _source(count: int, made: list[int] | None = None) -> Generator[Frames, None, None]:
    for index in range(count):
        if made is not None:
            made.append(index)
        yield Frames(first=index, pixels=np.full((1, 2, 2, 3), index % 256, np.uint8))


class Pairs:
    """Gives frames two by two, the odd one out at the end."""

    name = "pairs"

    def __init__(self) -> None:
        self._held: list[Frames] = []

    def push(self, item: Frames) -> Iterator[Frames]:
        self._held.append(item)
        if len(self._held) == 2:
            yield from self.flush()

    def flush(self) -> Iterator[Frames]:
        if self._held:
            yield Frames(first=self._held[0].first, pixels=np.concatenate([each.pixels for each in self._held]))
            self._held.clear()


class Numbers:
    """The last stage: the numbers of the frames, as they were pushed."""

    name = "numbers"

    def push(self, item: Frames) -> Iterator[list[int]]:
        yield [int(value) for value in item.pixels[:, 0, 0, 0]]

    def flush(self) -> Iterator[list[int]]:
        yield []


class Gate(Numbers):
    """Waits for the event at every item."""

    def __init__(self, opened: threading.Event) -> None:
        self._opened = opened
        self.entered = threading.Event()

    def push(self, item: Frames) -> Iterator[list[int]]:
        self.entered.set()
        self._opened.wait()
        yield from super().push(item)


class Broken(Numbers):
    def push(self, item: Frames) -> Iterator[list[int]]:
        if item.first == 2:
            raise RuntimeError("no")
        yield from super().push(item)


async def _outputs(chain: Chain) -> list[list[int]]:
    async with aclosing(chain.items()) as items:
        return [item async for item in items if not isinstance(item, Work)]


async def test_frames_come_out_in_order_and_nothing_is_held_back_at_the_end() -> None:
    async with DeviceThread.open() as device:
        outputs = await _outputs(Chain(device, _source(5), [Pairs(), Numbers()]))

    assert outputs == [[0, 1], [2, 3], [4], []]


async def test_every_piece_of_work_is_measured_once() -> None:
    async with DeviceThread.open() as device:
        chain = Chain(device, _source(4), [Pairs(), Numbers()])
        async with aclosing(chain.items()) as items:
            announced = [item async for item in items if isinstance(item, Work)]

    assert [work.stage for work in announced] == ["decode"] * 4
    counted = {name: [w.frames for w in chain.work if w.stage == name] for name in ("decode", "pairs", "numbers")}
    assert counted == {"decode": [1] * 4, "pairs": [1, 1, 1, 1, 0], "numbers": [2, 2, 0]}


async def test_a_slow_stage_holds_the_source_back() -> None:
    made: list[int] = []
    opened = threading.Event()
    async with DeviceThread.open() as device:
        gate = Gate(opened)
        chain = Chain(device, _source(50, made), [gate])
        run = asyncio.create_task(_outputs(chain))
        await asyncio.to_thread(gate.entered.wait)
        for _ in range(50):
            await asyncio.sleep(0.002)
        ahead = len(made)
        opened.set()
        outputs = await run

    assert ahead <= 5
    assert outputs == [[index] for index in range(50)] + [[]]


async def test_a_slow_reader_holds_the_source_back() -> None:
    made: list[int] = []
    async with DeviceThread.open() as device, aclosing(Chain(device, _source(50, made), [Numbers()]).items()) as items:
        await anext(items)
        for _ in range(50):
            await asyncio.sleep(0.002)

        assert len(made) <= 8


async def test_the_source_goes_on_while_a_stage_works() -> None:
    """The gate opens when the source makes its second chunk, so one after the other would never end."""
    opened = threading.Event()

    def source() -> Generator[Frames, None, None]:
        yield from _source(1)
        opened.set()
        yield Frames(first=1, pixels=np.ones((1, 2, 2, 3), np.uint8))

    async with DeviceThread.open() as device:
        assert await _outputs(Chain(device, source(), [Gate(opened)])) == [[0], [1], []]


async def test_a_broken_stage_ends_the_others_and_is_named() -> None:
    made: list[int] = []
    async with DeviceThread.open() as device:
        with pytest.raises(StageFailed) as failed:
            await _outputs(Chain(device, _source(1000, made), [Pairs(), Broken()]))

    assert failed.value.stage == "numbers"
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert len(made) < 20


async def test_a_broken_source_is_named() -> None:
    def source() -> Generator[Frames, None, None]:
        yield from _source(1)
        raise RuntimeError("no")

    async with DeviceThread.open() as device:
        with pytest.raises(StageFailed) as failed:
            await _outputs(Chain(device, source(), [Numbers()]))

    assert failed.value.stage == "decode"


async def test_closing_early_stops_the_source_and_leaves_no_thread_at_work() -> None:
    made: list[int] = []
    closed = threading.Event()

    def source() -> Generator[Frames, None, None]:
        try:
            yield from _source(1000, made)
        finally:
            closed.set()

    async with DeviceThread.open() as device:
        async with aclosing(Chain(device, source(), [Pairs(), Numbers()]).items()) as items:
            await anext(items)
        stopped_at = len(made)
        assert closed.is_set()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("pairs", "numbers"))]
        await asyncio.sleep(0.02)

    assert len(made) == stopped_at < 20


async def test_a_cancelled_caller_waits_for_the_item_in_hand() -> None:
    opened, done = threading.Event(), threading.Event()

    class Careful(Gate):
        def push(self, item: Frames) -> Iterator[list[int]]:
            yield from super().push(item)
            done.set()

    async with DeviceThread.open() as device:
        gate = Careful(opened)
        run = asyncio.create_task(_outputs(Chain(device, _source(9), [gate])))
        await asyncio.to_thread(gate.entered.wait)
        run.cancel()
        asyncio.get_running_loop().call_later(0.02, opened.set)
        with pytest.raises(asyncio.CancelledError):
            await run

        assert done.is_set()


def test_the_tail_is_the_work_that_nothing_else_hides() -> None:
    def work(stage: str, start: float, duration: float) -> Work:
        return Work(stage=stage, start=start, duration=duration, frames=1)

    done = [work("decode", 0, 2), work("decode", 2, 2), work("encode", 2, 1), work("encode", 3.5, 1.5)]

    assert busy_seconds(done, "encode") == 2.5
    assert tail_seconds(done, "encode", beside="decode") == 1.0
