"""A circuit breaker: closed, open after failures in a row, half-open for one trial. Pure: time is an argument."""

import enum
from dataclasses import dataclass, replace


class Circuit(enum.Enum):
    """What a breaker lets through: everything, nothing, or one trial."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker:
    """State of one breaker. It opens at `threshold` failures in a row, and lets one trial through `cool_down` later."""

    threshold: int = 3
    cool_down_seconds: float = 2.0
    failures: int = 0
    opened: float | None = None
    trial: bool = False

    def circuit(self, now: float) -> Circuit:
        """What the breaker lets through at `now`."""
        if self.opened is None:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if now - self.opened >= self.cool_down_seconds else Circuit.OPEN

    def allows(self, now: float) -> bool:
        """Whether a call may begin at `now`."""
        circuit = self.circuit(now)
        return circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and not self.trial)

    def begun(self, now: float) -> "Breaker":
        """After a call has begun."""
        return replace(self, trial=True) if self.circuit(now) is Circuit.HALF_OPEN else self

    def succeeded(self) -> "Breaker":
        """After a call has succeeded, or has failed for no fault of the endpoint."""
        return replace(self, failures=0, opened=None, trial=False)

    def failed(self, now: float) -> "Breaker":
        """After the endpoint has failed a call."""
        failures = self.failures + 1
        opened = now if self.opened is not None or failures >= self.threshold else None
        return replace(self, failures=failures, opened=opened, trial=False)

    def abandoned(self) -> "Breaker":
        """After a call was given up by its caller, which says nothing of the endpoint."""
        return replace(self, trial=False)
