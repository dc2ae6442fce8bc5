"""The waiting that goes with the step scheduler's decisions: seats to hold, turns to wait for."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from services.chassis.errors import Exhausted, FailedPrecondition
from services.denoiser.step_scheduler import (
    ANY,
    NOTHING,
    AdmittedAfter,
    Footprint,
    Refused,
    StepScheduler,
    TooLarge,
    Wish,
)


class Turnstile:
    """One device, `scheduler.seats` runs, one step at a time, of one run or of several that share it."""

    def __init__(self, scheduler: StepScheduler, retry_after_seconds: float) -> None:
        """`retry_after_seconds` is the advice that a refused caller gets."""
        self._scheduler = scheduler
        self.retry_after_seconds = retry_after_seconds
        self._turns: dict[int, tuple[asyncio.Future[Party], object]] = {}
        self._seats_awaited: dict[int, asyncio.Event] = {}
        self._at_device = 0
        self._stepping = 0

    @property
    def capacity(self) -> int:
        """Runs that may have a seat at once."""
        return self._scheduler.seats

    @property
    def runs(self) -> int:
        """Runs that have a seat."""
        return self._scheduler.runs

    @property
    def waiting(self) -> int:
        """Runs that wait for their next step."""
        return len(self._turns)

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that there are for runs, 0 if they are not counted, and bytes that are reserved."""
        return self._scheduler.memory or 0, self._scheduler.reserved

    @asynccontextmanager
    async def seat(self, priority: int, footprint: Footprint = NOTHING) -> AsyncIterator["Seat"]:
        """Hold a seat for the block, or until it is given back earlier.

        Runs of a lower class are sent away for it if need be, which takes as long as the step in work. Raises at once
        `Exhausted` where there is none (`SLOTS_BUSY`, `MEMORY_BUSY`), and `FailedPrecondition` (`DEVICE_MEMORY`) for a
        run that never fits.
        """
        admission = self._scheduler.admit(priority, footprint)
        if isinstance(admission, TooLarge):
            raise FailedPrecondition(
                f"A clip of this size needs {admission.needed} bytes of device memory; {admission.available} are "
                "available.",
                reason="DEVICE_MEMORY",
            )
        if isinstance(admission, Refused):
            raise Exhausted(
                "The device's memory is taken by other runs."
                if admission.memory
                else f"All {self.capacity} slots of this service are busy.",
                reason="MEMORY_BUSY" if admission.memory else "SLOTS_BUSY",
                retry_after_seconds=self.retry_after_seconds,
            )
        seat = Seat(self, admission.run, priority)
        try:
            if isinstance(admission, AdmittedAfter):
                for victim in admission.victims:
                    await self._left(victim)
            yield seat
        finally:
            seat.vacate()

    async def _left(self, victim: int) -> None:
        if not self._scheduler.is_seated(victim):
            return
        gone = self._seats_awaited.setdefault(victim, asyncio.Event())
        await gone.wait()

    def vacate(self, run: int) -> None:
        """Give the seat of `run` back; a second time does nothing."""
        self._scheduler.leave(run)
        gone = self._seats_awaited.pop(run, None)
        if gone is not None:
            gone.set()
        self._dispatch()

    def begin(self, run: int) -> None:
        """`run` wants steps from now on."""
        self._scheduler.begin(run)
        self._stepping += 1

    def end(self, run: int) -> None:
        """`run` wants no further steps."""
        self._scheduler.end(run)
        self._stepping -= 1
        self._dispatch()

    def must_leave(self, run: int) -> bool:
        """Whether `run` has to stop before its next step."""
        return self._scheduler.must_leave(run)

    def contended(self, run: int, *, shareable: bool) -> bool:
        """Whether `run`, whose turn it is, has to give the device up after its step in work. Any thread may ask.

        A run whose steps are `shareable` does so for every other that takes steps.
        """
        return bool(self._turns) or (shareable and self._stepping > 1) or self._scheduler.must_leave(run)

    @asynccontextmanager
    async def turn(self, run: int, wish: Wish, offer: object) -> AsyncIterator["Turn"]:
        """Wait until the next step is that of `run`, and take the device for the block.

        Runs whose wishes are of one kind may get it together, each with the `offer` of all.
        """
        turn = asyncio.get_running_loop().create_future()
        self._turns[run] = (turn, offer)
        self._scheduler.wants(run, wish)
        self._dispatch()
        try:
            party = await turn
        except asyncio.CancelledError:
            if self._turns.pop(run, None) is None:
                # The turn was given in the same moment: it goes to the next.
                self._leave_device()
            raise
        taken = Turn(self._scheduler, run, party)
        try:
            yield taken
        finally:
            taken.lap()
            self._leave_device()

    def _leave_device(self) -> None:
        self._at_device -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        if self._at_device or not self._turns:
            return
        first = self._scheduler.choose(self._turns)
        runs = None if first is None else self._scheduler.sharers(first, self._turns)
        if runs is None:
            return
        self._at_device = len(runs)
        for run in runs:
            self._scheduler.granted(run)
        turns = [self._turns.pop(run) for run in runs]
        party = Party([offer for _, offer in turns])
        for turn, _ in turns:
            turn.set_result(party)


class Party:
    """Those that have the device at the same time, and what each offered."""

    def __init__(self, offers: Sequence[object]) -> None:
        self._offers = offers
        self._work: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._offers)

    async def once(self, work: Callable[[Sequence[object]], Awaitable[None]]) -> None:
        """Have `work` done on all offers, by whoever asks first, and wait for it; it is finished whoever goes away."""
        if self._work is None:
            self._work = asyncio.ensure_future(work(self._offers))
        await asyncio.shield(self._work)


class Turn:
    """The device in the hands of one run, for one step or for several in a row."""

    def __init__(self, scheduler: StepScheduler, run: int, party: Party) -> None:
        self._scheduler = scheduler
        self._run = run
        self.party = party
        self._since = time.monotonic()

    def lap(self) -> None:
        """A step is over: charge the run with the time since the last."""
        now = time.monotonic()
        self._scheduler.charge(self._run, now - self._since)
        self._since = now


class Seat:
    """One run's place at the device."""

    def __init__(self, turnstile: Turnstile, run: int, priority: int) -> None:
        self._turnstile = turnstile
        self._run = run
        self.priority = priority

    @asynccontextmanager
    async def stepping(self) -> AsyncIterator[None]:
        """The run takes steps in the block."""
        self._turnstile.begin(self._run)
        try:
            yield
        finally:
            self._turnstile.end(self._run)

    @asynccontextmanager
    async def turn(self, wish: Wish = ANY, offer: object = None) -> AsyncIterator[Turn]:
        """Wait for the run's next step and take the device for the block, with others of its kind where that pays."""
        async with self._turnstile.turn(self._run, wish, offer) as turn:
            yield turn

    def contended(self, *, shareable: bool = False) -> bool:
        """Whether the run has to end its turn after the step in work. Any thread may ask."""
        return self._turnstile.contended(self._run, shareable=shareable)

    @property
    def retry_seconds(self) -> float:
        """When a run that has to go is told to come back."""
        return self._turnstile.retry_after_seconds

    @property
    def preempted(self) -> bool:
        """Whether work of a higher class takes this seat: the run must stop before its next step."""
        return self._turnstile.must_leave(self._run)

    def vacate(self) -> None:
        """Give the seat back before the block ends; a second time does nothing."""
        self._turnstile.vacate(self._run)
