"""Who runs the next step on the one device, and who is let in: decisions only, nothing waits or runs here.

A higher class goes first, at every step. Within a class the run with the fewest device seconds goes first; a newcomer
starts level with the least served of its class, so that it neither waits for the others' past nor makes them wait for
its own.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """The run has a seat."""

    run: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmittedAfter:
    """The run has the place of `victims`, which must stop before their next step and leave."""

    run: int
    victims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Every seat, or the memory, is taken by runs of the same or a higher class."""

    memory: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLarge:
    """The run needs more memory than there is. Both in bytes."""

    needed: int
    available: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes that a run needs: `peak` while it has a step, `held` from its first step to its last."""

    peak: int = 0
    held: int = 0


NOTHING = Footprint()


Admission: TypeAlias = Admitted | AdmittedAfter | Refused | TooLarge


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """The next step of a run: those of one `kind` may be shared, None cannot be; `expert` serves it."""

    kind: Hashable = None
    expert: Hashable = None


ANY = Wish()


@dataclass(kw_only=True, slots=True)
class _Run:
    priority: int
    footprint: Footprint = NOTHING
    served: float = 0.0
    stepping: bool = False
    leaving: bool = False
    wish: Wish = ANY
    passed_over: float = 0.0


class StepScheduler:
    """Seats for `seats` runs, and the order of their steps. A run is a number that `admit` gives out."""

    def __init__(
        self,
        seats: int,
        most_sharers: Callable[[Hashable], int] = lambda _kind: 1,
        swap_seconds: float | None = None,
        memory: int | None = None,
    ) -> None:
        """`most_sharers`: how many runs whose next steps are of one kind may take it together.

        `swap_seconds`: experts are swapped, and a step of the one that is away waits at most so many device seconds
        for those of the one that is there; None if experts do not move. `memory`: bytes for all runs, if
        they are counted.
        """
        self.seats = seats
        self._most_sharers = most_sharers
        self._swap_seconds = swap_seconds
        self.memory = memory
        self._resident: Hashable = None
        self._runs: dict[int, _Run] = {}
        self._next_run = 0

    @property
    def runs(self) -> int:
        """Runs that have a seat, those included that are asked to leave."""
        return len(self._runs)

    def is_seated(self, run: int) -> bool:
        """Whether `run` has not left."""
        return run in self._runs

    @property
    def reserved(self) -> int:
        """Bytes reserved for the runs that stay."""
        return _total([run.footprint for run in list(self._runs.values()) if not run.leaving])

    def admit(self, priority: int, footprint: Footprint = NOTHING) -> Admission:
        """Let a run of class `priority` in, if need be in place of the lowest lower ones, the newest of these first.

        Only a run that is stepping can leave with its state; one that still reads its input is left alone. Since one
        step runs at a time, the greatest peak counts, and what each run holds between its steps.
        """
        if self.memory is not None and _total([footprint]) > self.memory:
            return TooLarge(needed=_total([footprint]), available=self.memory)
        staying = {number: run for number, run in self._runs.items() if not run.leaving}
        lower = sorted(
            ((run.priority, -number) for number, run in staying.items() if run.priority < priority and run.stepping),
            reverse=True,
        )
        victims: list[int] = []
        while not self._fits(footprint, staying):
            if not lower:
                return Refused(memory=len(staying) < self.seats)
            victims.append(-lower.pop()[1])
            del staying[victims[-1]]
        for victim in victims:
            self._runs[victim].leaving = True
        number, self._next_run = self._next_run, self._next_run + 1
        self._runs[number] = _Run(priority=priority, footprint=footprint)
        return AdmittedAfter(run=number, victims=tuple(victims)) if victims else Admitted(run=number)

    def _fits(self, footprint: Footprint, beside: Mapping[int, _Run]) -> bool:
        footprints = [footprint, *(run.footprint for run in beside.values())]
        return len(beside) < self.seats and (self.memory is None or _total(footprints) <= self.memory)

    def begin(self, run: int) -> None:
        """`run` has its input and wants steps from now on."""
        peers = [other.served for other in self._runs.values() if other.stepping and self._same_class(other, run)]
        self._runs[run].served = min(peers, default=0.0)
        self._runs[run].stepping = True

    def end(self, run: int) -> None:
        """`run` wants no further steps; it keeps its seat, if it still has it."""
        if run in self._runs:
            self._runs[run].stepping = False
            self._runs[run].wish = ANY

    def leave(self, run: int) -> None:
        """`run` gives its seat back. Does nothing for a run that has left."""
        self._runs.pop(run, None)

    def charge(self, run: int, seconds: float) -> None:
        """`run` has used the device for `seconds`."""
        if run in self._runs:
            self._runs[run].served += seconds
            for other in self._runs.values():
                if other.stepping and other.wish.expert not in (None, self._runs[run].wish.expert):
                    other.passed_over += seconds

    def must_leave(self, run: int) -> bool:
        """Whether `run` has to stop before its next step."""
        return self._runs[run].leaving

    def choose(self, waiting: Collection[int]) -> int | None:
        """The run of `waiting` that has the next step; None if the device is kept for another.

        It is kept for a run of a higher class that is between two of its steps: to give it away there would let a
        lower class run every other step.
        """
        stepping = [run.priority for run in self._runs.values() if run.stepping and not run.leaving]
        highest = max(stepping, default=0)
        able = [number for number in waiting if self._runs[number].leaving or self._runs[number].priority >= highest]
        first = min(able, key=lambda number: (self._runs[number].served, number), default=None)
        return first if first is None or self._swap_seconds is None else self._without_swap(first, able)

    def _without_swap(self, first: int, able: Collection[int]) -> int | None:
        """`first`, or who goes before it so that one expert's steps are drained before the other is brought in.

        The device is kept for a run of the resident expert that is between two of its steps.
        """
        if self._resident is None or self._runs[first].leaving:
            return first
        overdue = [n for n in able if self._runs[n].passed_over > (self._swap_seconds or 0.0)]
        if overdue:
            return max(overdue, key=lambda n: self._runs[n].passed_over)
        staying = [n for n in able if self._runs[n].wish.expert == self._resident]
        if staying:
            return min(staying, key=lambda n: (self._runs[n].served, n))
        coming = any(
            run.stepping and not run.leaving and run.wish.expert == self._resident and self._same_class(run, first)
            for number, run in self._runs.items()
            if number not in able
        )
        return None if coming else first

    def granted(self, run: int) -> None:
        """The step is that of `run`, whose expert is resident from here on."""
        self._runs[run].passed_over = 0.0
        self._resident = self._runs[run].wish.expert or self._resident

    def wants(self, run: int, wish: Wish = ANY) -> None:
        """What the next step of `run` is like."""
        self._runs[run].wish = wish

    def sharers(self, first: int, waiting: Collection[int]) -> tuple[int, ...] | None:
        """`first`, which `choose` gave, and those of `waiting` that take the step with it; None to wait for more.

        It is waited for runs of the same class and kind that are between two of their steps: they come back at once,
        and without that, runs of one kind would take turns for ever.
        """
        kind = self._runs[first].wish.kind
        most = 1 if kind is None or self._runs[first].leaving else self._most_sharers(kind)
        peers = [
            number
            for number, run in self._runs.items()
            if number != first and run.stepping and not run.leaving and run.wish.kind == kind
            if self._same_class(run, first)
        ]
        ready = sorted((n for n in peers if n in waiting), key=lambda n: (self._runs[n].served, n))
        if most > 1 + len(ready) and len(ready) < len(peers):
            return None
        return (first, *ready[: most - 1])

    def _same_class(self, other: _Run, run: int) -> bool:
        return other.priority == self._runs[run].priority


def _total(footprints: Sequence[Footprint]) -> int:
    return max((each.peak for each in footprints), default=0) + sum(each.held for each in footprints)
