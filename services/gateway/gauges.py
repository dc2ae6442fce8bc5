"""What an operator watches: circuits and calls of every endpoint, and how much work of each tier waits and runs."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation
from sqlalchemy.exc import InterfaceError, OperationalError

from services.chassis.logs import logger
from services.chassis.telemetry import meter
from services.gateway.fair_queue import Tier
from services.gateway.pool import Pool
from services.gateway.store.jobs import JobStore
from services.gateway.store.transitions import State

_COUNTED = (State.QUEUED, State.RUNNING)


class Gauges:
    """Registers with the meter of the service that it is made in. The counts of tiers are as old as the last `run`."""

    def __init__(self, jobs: JobStore, pools: Sequence[Pool[Any]], tiers: Sequence[Tier], *, interval: float) -> None:
        """`interval`: seconds between two looks into the database."""
        self._jobs = jobs
        self._pools = pools
        self._tiers = {tier.number: tier.name for tier in tiers}
        self._interval = interval
        self._population: Mapping[tuple[int, State], int] = {}
        meter().create_observable_gauge(
            "rushes.gateway.circuit",
            callbacks=[self._circuits],
            description="Circuit breaker of an endpoint: 0 closed, 1 open, 2 half-open",
        )
        meter().create_observable_gauge(
            "rushes.gateway.outstanding",
            callbacks=[self._outstanding],
            unit="{call}",
            description="Calls in flight at an endpoint",
        )
        meter().create_observable_gauge(
            "rushes.gateway.generations",
            callbacks=[self._generations],
            unit="{generation}",
            description="Generations that wait or run, by tier",
        )

    async def run(self) -> None:
        """Count over and over until cancelled."""
        while True:
            try:
                self._population = await self._jobs.population()
            except (OperationalError, InterfaceError) as failed:
                logger(__name__).warning("gauges.retry", error=type(failed).__name__)
            await asyncio.sleep(self._interval)

    def _circuits(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pool in self._pools:
            for address, circuit in pool.circuits().items():
                yield Observation(circuit.value, {"stage": pool.stage, "endpoint": address})

    def _outstanding(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pool in self._pools:
            for endpoint in pool.endpoints:
                yield Observation(endpoint.outstanding, {"stage": pool.stage, "endpoint": endpoint.address})

    def _generations(self, _options: CallbackOptions) -> Iterable[Observation]:
        population = self._population
        for number, name in self._tiers.items():
            for state in _COUNTED:
                yield Observation(population.get((number, state), 0), {"tier": name, "state": state.name.lower()})
