"""When to try again: full-jitter exponential back-off, bounded by patience."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from rushes.client.errors import RushesError


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Waits grow from `first_seconds` by `factor` up to `longest_seconds`, each shortened at random.

    `patience_seconds` is how long a call may go on without any progress before its failure is raised.
    `silence_seconds` is how long a stream may be silent before it counts as lost; servers send a heartbeat every 10 s.
    """

    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    factor: float = 2.0
    patience_seconds: float = 60.0
    silence_seconds: float = 35.0


class Patience:
    """What is left of the patience of one call."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._failing_since: float | None = None

    def renew(self) -> None:
        """The call made progress."""
        self._failures = 0
        self._failing_since = None

    def next_wait(self, failure: RushesError) -> float:
        """Seconds to wait before the next attempt, at least as long as the server asked for.

        Raises `failure` when the patience is over.
        """
        instant = self._clock()
        if self._failing_since is None:
            self._failing_since = instant
        ceiling = min(self._policy.first_seconds * self._policy.factor**self._failures, self._policy.longest_seconds)
        wait = max(self._jitter(ceiling / 2, ceiling), failure.retry_after_seconds or 0.0)
        if instant + wait - self._failing_since > self._policy.patience_seconds:
            raise failure
        self._failures += 1
        return wait
