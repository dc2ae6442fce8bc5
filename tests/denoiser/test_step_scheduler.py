"""Who runs the next step: decisions without a model, and turns without a device."""

import asyncio
import random

import pytest

from services.chassis.errors import Exhausted
from services.denoiser.step_scheduler import Admitted, AdmittedAfter, Refused, StepScheduler
from services.denoiser.turnstile import Seat, Turnstile


def admitted(scheduler: StepScheduler, priority: int = 0, *, stepping: bool = True) -> int:
    admission = scheduler.admit(priority)
    assert isinstance(admission, Admitted | AdmittedAfter)
    if stepping:
        scheduler.begin(admission.run)
    return admission.run


def test_seats_are_given_until_they_are_taken() -> None:
    scheduler = StepScheduler(2)
    first, _ = admitted(scheduler), admitted(scheduler)
    assert scheduler.admit(0) == Refused()
    scheduler.leave(first)
    assert isinstance(scheduler.admit(0), Admitted)


def test_a_higher_class_takes_the_seat_of_the_newest_of_the_lowest_class() -> None:
    scheduler = StepScheduler(3)
    low_old, low_new, _middle = admitted(scheduler, 0), admitted(scheduler, 0), admitted(scheduler, 1)
    admission = scheduler.admit(2)
    assert isinstance(admission, AdmittedAfter)
    assert admission.victims == (low_new,)
    assert scheduler.must_leave(low_new)
    assert not scheduler.must_leave(low_old)
    again = scheduler.admit(2)
    assert isinstance(again, AdmittedAfter)
    assert again.victims == (low_old,)


def test_the_same_class_is_not_preempted() -> None:
    scheduler = StepScheduler(1)
    admitted(scheduler, 3)
    assert scheduler.admit(3) == Refused()


def test_a_run_that_still_reads_its_input_is_not_preempted() -> None:
    scheduler = StepScheduler(1)
    admitted(scheduler, 0, stepping=False)
    assert scheduler.admit(9) == Refused()


def test_a_seat_that_is_being_left_is_not_given_twice() -> None:
    scheduler = StepScheduler(1)
    victim = admitted(scheduler, 0)
    assert isinstance(scheduler.admit(1), AdmittedAfter)
    assert scheduler.admit(1) == Refused()
    scheduler.leave(victim)
    assert scheduler.admit(1) == Refused()


def test_the_higher_class_has_every_step_and_the_device_is_kept_for_it() -> None:
    scheduler = StepScheduler(2)
    low, high = admitted(scheduler, 0), admitted(scheduler, 1)
    assert scheduler.choose({low, high}) == high
    assert scheduler.choose({low}) is None
    scheduler.end(high)
    assert scheduler.choose({low}) == low


def test_within_a_class_the_least_served_is_next() -> None:
    scheduler = StepScheduler(2)
    one, two = admitted(scheduler), admitted(scheduler)
    order = []
    for _ in range(9):
        run = scheduler.choose({one, two})
        assert run is not None
        order.append(run)
        # The steps of the second run are twice as long.
        scheduler.charge(run, 1.0 if run == one else 2.0)
    assert order.count(one) == 2 * order.count(two)


def test_a_newcomer_neither_waits_for_the_past_of_the_others_nor_makes_them_wait() -> None:
    scheduler = StepScheduler(2)
    old = admitted(scheduler)
    scheduler.charge(old, 100.0)
    new = admitted(scheduler)
    order = []
    for _ in range(6):
        run = scheduler.choose({old, new})
        assert run is not None
        order.append(run)
        scheduler.charge(run, 1.0)
    assert order.count(old) == order.count(new) == 3


def test_a_run_that_must_leave_gets_its_turn_at_once_so_that_it_can_go() -> None:
    scheduler = StepScheduler(1)
    low = admitted(scheduler, 0)
    admitted(scheduler, 1)
    assert scheduler.choose({low}) == low


def test_no_run_starves_in_a_random_crowd_of_one_class() -> None:
    draw = random.Random(3)
    scheduler = StepScheduler(5)
    runs = [admitted(scheduler) for _ in range(5)]
    seconds = dict.fromkeys(runs, 0.0)
    for _ in range(2000):
        run = scheduler.choose(set(runs))
        assert run is not None
        length = draw.uniform(0.1, 2.0)
        scheduler.charge(run, length)
        seconds[run] += length
    assert max(seconds.values()) - min(seconds.values()) <= 2.0


async def steps(seat: Seat, name: str, count: int, order: list[str]) -> None:
    async with seat.stepping():
        for _ in range(count):
            async with seat.turn():
                order.append(name)
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)


async def test_turns_are_exclusive_and_fair() -> None:
    turnstile, inside = Turnstile(StepScheduler(3), 1.0), 0

    async def work() -> None:
        nonlocal inside
        async with turnstile.seat(0) as seat, seat.stepping():
            for _ in range(5):
                async with seat.turn():
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(work())


async def test_a_higher_class_starts_after_the_step_in_work_and_is_not_interrupted() -> None:
    turnstile, order = Turnstile(StepScheduler(2), 1.0), list[str]()
    async with asyncio.TaskGroup() as group, turnstile.seat(0) as low, turnstile.seat(1) as high:
        slow = group.create_task(steps(low, "low", 6, order))
        await asyncio.sleep(0.003)
        await steps(high, "high", 4, order)
        await slow
    first, last = order.index("high"), len(order) - 1 - order[::-1].index("high")
    assert order[first : last + 1] == ["high"] * 4
    assert first < 6
    assert order.count("low") == 6


async def test_a_newcomer_waits_for_the_seat_that_it_takes() -> None:
    turnstile = Turnstile(StepScheduler(1), 2.0)
    left = asyncio.Event()

    async def victim() -> None:
        async with turnstile.seat(0) as seat, seat.stepping():
            while not seat.preempted:
                async with seat.turn():
                    await asyncio.sleep(0)
            left.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(victim())
        await asyncio.sleep(0)
        with pytest.raises(Exhausted) as refused:
            await turnstile.seat(0).__aenter__()
        assert refused.value.retry_after_seconds == 2.0
        async with turnstile.seat(5) as seat:
            assert left.is_set()
            assert not seat.preempted


async def test_a_cancelled_wait_for_a_turn_leaves_the_device_free() -> None:
    turnstile = Turnstile(StepScheduler(2), 1.0)
    async with turnstile.seat(0) as one, turnstile.seat(0) as two, one.stepping(), two.stepping():
        async with one.turn():
            waiting = asyncio.create_task(two.turn().__aenter__())
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(1), one.turn():
            pass


async def test_a_vacated_seat_is_free_before_its_block_ends() -> None:
    turnstile = Turnstile(StepScheduler(1), 1.0)
    async with turnstile.seat(0) as seat:
        seat.vacate()
        async with turnstile.seat(0):
            pass
