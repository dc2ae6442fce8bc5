"""The endpoints of one stage: least outstanding work, a circuit breaker each, and waiting for a free slot."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

from services.chassis.channels import open_channel
from services.chassis.errors import Cancelled, DataLoss, DeadlineExceeded, Exhausted, Internal, RushesError, Unavailable
from services.chassis.telemetry import TracedChannel
from services.gateway.breaker import Breaker, Circuit

DescriptionT = TypeVar("DescriptionT")

FAULTS = (Unavailable, Internal, DeadlineExceeded, DataLoss, Cancelled)
"""Errors that speak against the endpoint and not against the request; nobody here cancels a call and reads on."""


class Endpoint(Generic[DescriptionT]):
    """One process of a stage. `description` is what it last said of itself, None while it was never reached."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel: TracedChannel = open_channel(address)
        self.description: DescriptionT | None = None
        self.reachable = False
        self.slots = 1
        self.held: Counter[int] = Counter()
        self.breaker = Breaker()

    @property
    def outstanding(self) -> int:
        """Calls in flight."""
        return self.held.total()

    def free_for(self, precedence: int) -> bool:
        """Whether a call of this precedence finds a slot: those of lower precedence make room for it."""
        return sum(count for held, count in self.held.items() if held >= precedence) < self.slots


class Pool(Generic[DescriptionT]):
    """All endpoints of one stage."""

    def __init__(self, stage: str, addresses: Sequence[str]) -> None:
        self.stage = stage
        self.endpoints: list[Endpoint[DescriptionT]] = [Endpoint(address) for address in addresses]
        self._bell = asyncio.Event()

    async def close(self) -> None:
        """Close every channel."""
        for endpoint in self.endpoints:
            await endpoint.channel.close()

    def described(self) -> list[DescriptionT]:
        """What the reachable endpoints said of themselves."""
        return [
            endpoint.description
            for endpoint in self.endpoints
            if endpoint.reachable and endpoint.description is not None
        ]

    @property
    def slots(self) -> int:
        """Calls that the reachable endpoints take at once."""
        return sum(endpoint.slots for endpoint in self.endpoints if endpoint.reachable)

    def circuits(self) -> dict[str, Circuit]:
        """State of every breaker by address."""
        now = time.monotonic()
        return {endpoint.address: endpoint.breaker.circuit(now) for endpoint in self.endpoints}

    def update(
        self, endpoint: Endpoint[DescriptionT], description: DescriptionT | None, slots: int, *, reachable: bool
    ) -> None:
        """Note what an endpoint said of itself, or that it did not answer."""
        endpoint.description = description or endpoint.description
        endpoint.slots = max(1, slots) if reachable else endpoint.slots
        if reachable and not endpoint.reachable:
            endpoint.breaker = endpoint.breaker.succeeded()
        endpoint.reachable = reachable
        self._wake()

    @contextlib.asynccontextmanager
    async def slot(
        self, *, fits: Callable[[DescriptionT], bool], wait_seconds: float, precedence: int = 1
    ) -> AsyncIterator[Endpoint[DescriptionT]]:
        """An endpoint with a free slot, waited for at most so long; the outcome of the block moves its breaker.

        Slots that work of lower `precedence` holds count as free: the endpoint makes room. Raises `Exhausted` if none
        became free, `Unavailable` if there is none.
        """
        endpoint = await self._acquire(fits, wait_seconds, precedence)
        try:
            yield endpoint
        except FAULTS:
            endpoint.breaker = endpoint.breaker.failed(time.monotonic())
            raise
        except RushesError:
            endpoint.breaker = endpoint.breaker.succeeded()
            raise
        except BaseException:
            endpoint.breaker = endpoint.breaker.abandoned()
            raise
        else:
            endpoint.breaker = endpoint.breaker.succeeded()
        finally:
            endpoint.held[precedence] -= 1
            self._wake()

    def _wake(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    async def _acquire(
        self, fits: Callable[[DescriptionT], bool], wait_seconds: float, precedence: int
    ) -> Endpoint[DescriptionT]:
        deadline = time.monotonic() + wait_seconds
        while True:
            now = time.monotonic()
            fitting = [
                endpoint
                for endpoint in self.endpoints
                if endpoint.reachable
                and endpoint.description is not None
                and fits(endpoint.description)
                and endpoint.breaker.allows(now)
            ]
            free = [endpoint for endpoint in fitting if endpoint.free_for(precedence)]
            if free:
                endpoint = min(free, key=lambda one: one.outstanding / one.slots)
                endpoint.held[precedence] += 1
                endpoint.breaker = endpoint.breaker.begun(now)
                return endpoint
            if now >= deadline and fitting:
                raise Exhausted(f"Every {self.stage} is busy.", reason="STAGE_BUSY", retry_after_seconds=1.0)
            if now >= deadline:
                raise Unavailable(f"No {self.stage} is free.", reason="STAGE_UNAVAILABLE")
            with contextlib.suppress(TimeoutError):
                # A breaker that becomes half-open rings no bell.
                async with asyncio.timeout(min(0.25, deadline - now)):
                    await self._bell.wait()
