"""The intervals that a call measured, as the caller gets them and as spans of the trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.chassis.telemetry import tracer


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One measured interval: `began` and `seconds` by `time.monotonic`."""

    name: str
    began: float
    seconds: float
    attributes: dict[str, str] = field(default_factory=dict)


class Spans:
    """Collects the intervals of one call; `origin` is when the call was received."""

    def __init__(self) -> None:
        self.origin = time.monotonic()
        self.intervals: list[Interval] = []

    def add(self, name: str, began: float, seconds: float, **attributes: str) -> None:
        """Record an interval that is over, here and in the trace."""
        self.intervals.append(Interval(name=name, began=began, seconds=seconds, attributes=attributes))
        started = time.time_ns() - int((time.monotonic() - began) * 1e9)
        tracer().start_span(name, start_time=started, attributes=attributes).end(started + int(seconds * 1e9))

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Record the block as an interval, unless it fails."""
        began = time.monotonic()
        yield
        self.add(name, began, time.monotonic() - began)
