"""The one thread that owns the device."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing

import pytest
import torch

from services.chassis.errors import FailedPrecondition
from services.model.device import DeviceThread, choose_device, choose_dtype


def test_the_device_is_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="cuda:99 is not there"):
        choose_device("cuda:99")


def test_the_dtype_follows_the_device() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


async def test_everything_runs_on_one_thread_and_not_on_the_event_loop() -> None:
    async with DeviceThread.open() as thread:
        idents = {await thread.run(threading.get_ident) for _ in range(3)}

        def numbers() -> Generator[int, None, None]:
            for _ in range(3):
                yield threading.get_ident()

        idents |= {ident async for ident in thread.iterate(numbers())}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


async def test_two_iterations_take_turns() -> None:
    order: list[str] = []

    def steps(name: str) -> Generator[str, None, None]:
        for _ in range(3):
            order.append(name)
            yield name

    async def consume(thread: DeviceThread, name: str) -> None:
        async for _ in thread.iterate(steps(name)):
            pass

    async with DeviceThread.open() as thread, asyncio.TaskGroup() as group:
        group.create_task(consume(thread, "a"))
        group.create_task(consume(thread, "b"))
    assert order == ["a", "b", "a", "b", "a", "b"]


async def test_a_consumer_that_stops_closes_the_generator_on_the_same_thread() -> None:
    closed: list[int] = []

    def steps() -> Generator[int, None, None]:
        try:
            while True:
                yield threading.get_ident()
        finally:
            closed.append(threading.get_ident())

    async with DeviceThread.open() as thread:
        async with aclosing(thread.iterate(steps())) as items:
            first = await anext(items)
        assert closed == [first]


async def test_a_cancelled_consumer_lets_the_step_in_work_finish_and_then_closes() -> None:
    started, release = threading.Event(), threading.Event()
    events: list[str] = []

    def steps() -> Generator[int, None, None]:
        try:
            started.set()
            release.wait(10)
            events.append("step finished")
            yield 1
        finally:
            events.append("closed")

    async def consume(thread: DeviceThread) -> None:
        async for _ in thread.iterate(steps()):
            pass

    async with DeviceThread.open() as thread:
        task = asyncio.create_task(consume(thread))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["step finished", "closed"]
        assert await thread.run(lambda: "still works") == "still works"


async def test_an_error_in_a_step_reaches_the_consumer() -> None:
    def steps() -> Generator[int, None, None]:
        yield 1
        raise ArithmeticError("in the step")

    async with DeviceThread.open() as thread:
        with pytest.raises(ArithmeticError, match="in the step"):
            async for _ in thread.iterate(steps()):
                pass


async def test_a_stream_goes_on_by_itself_one_item_ahead_of_its_consumer_and_no_further() -> None:
    made: list[int] = []

    def steps() -> Generator[int, None, None]:
        for i in range(6):
            made.append(i)
            yield i

    async with DeviceThread.open() as thread, aclosing(thread.stream(steps(), lambda _: True)) as items:
        ahead = []
        for i in range(6):
            assert (await anext(items)).item == i
            # Whoever asks behind it finds the thread done with what it began by itself.
            await thread.run(lambda: None)
            ahead.append(len(made) - i - 1)
    assert max(ahead) == 1


async def test_a_stream_waits_to_be_asked_where_it_may_not_go_on() -> None:
    made: list[int] = []

    def steps() -> Generator[int, None, None]:
        for i in range(3):
            made.append(i)
            yield i

    async with DeviceThread.open() as thread, aclosing(thread.stream(steps(), lambda i: i == 0)) as items:
        assert [(await anext(items)).going_on for _ in range(2)] == [True, False]
        await thread.run(lambda: None)
        assert made == [0, 1]
        assert (await anext(items)).item == 2


async def test_a_stream_that_is_left_makes_nothing_further_and_closes_its_generator() -> None:
    events: list[str] = []

    def steps() -> Generator[int, None, None]:
        try:
            for i in range(9):
                events.append(f"step {i}")
                yield i
        finally:
            events.append("closed")

    async with DeviceThread.open() as thread:
        async with aclosing(thread.stream(steps(), lambda _: True)) as items:
            await anext(items)
        left = list(events)
        await thread.run(lambda: None)
    assert events == left
    assert events[-1] == "closed"
    assert len(events) <= 3


async def test_an_error_in_a_streams_step_or_question_reaches_the_consumer() -> None:
    def steps() -> Generator[int, None, None]:
        yield 1
        raise ArithmeticError("in the step")

    def unanswerable(_item: int) -> bool:
        raise ArithmeticError("in the question")

    async with DeviceThread.open() as thread:
        for question, message in ((lambda _: True, "in the step"), (unanswerable, "in the question")):
            with pytest.raises(ArithmeticError, match=message):
                async for _ in thread.stream(steps(), question):
                    pass


async def test_the_number_of_threads_is_the_operators() -> None:
    before = torch.get_num_threads()
    async with DeviceThread.open(threads=1) as thread:
        assert await thread.run(torch.get_num_threads) == 1
    torch.set_num_threads(before)
