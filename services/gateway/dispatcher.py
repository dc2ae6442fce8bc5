"""Leases generations and runs each to its end: attempt, heartbeat, cancellation; and reaps what others have lost."""

import asyncio
import random
from collections.abc import Collection, Iterator
from typing import TypeVar

from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis.errors import Exhausted, Internal, RushesError
from services.chassis.logs import logger
from services.chassis.telemetry import meter, tracer
from services.gateway import views
from services.gateway.chain import StageFailed
from services.gateway.fair_queue import Tier, admissible
from services.gateway.outage import DATABASE_AWAY
from services.gateway.pool import FAULTS
from services.gateway.run import Run, Workshop
from services.gateway.store.job import Job, Lease, LeaseLost, Outcome
from services.gateway.store.notifications import Notifications
from services.gateway.store.topics import QUEUE_TOPIC, topic
from services.gateway.store.transitions import State
from services.gateway.takes import Takes

POLL_SECONDS = 1.0
"""How long a bell is trusted: one that another process rings may be lost with its connection."""

ErrorT = TypeVar("ErrorT", bound=BaseException)


class CancelRequested(Exception):
    """The caller cancelled the generation."""


class Dispatcher:
    """Keeps the denoisers busy: as many generations wait for or use one as there are slots.

    While one is rendered the next is denoised.
    """

    def __init__(
        self,
        workshop: Workshop,
        *,
        owner: str,
        notifications: Notifications,
        draining: asyncio.Event,
        lease_seconds: float,
        max_losses: int,
        grace_seconds: float,
    ) -> None:
        self._workshop = workshop
        self._owner = owner
        self._notifications = notifications
        self._draining = draining
        self._lease_seconds = lease_seconds
        self._max_losses = max_losses
        self._grace_seconds = grace_seconds
        self._shares = workshop.share_previews
        self._waits = meter().create_histogram(
            "rushes.gateway.queue.wait", unit="s", description="Seconds from creation to the first claim"
        )
        self._denoising: dict[Lease, Tier] = {}
        self._running: dict[Lease, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Work until draining, then let what runs finish within the grace; what does not goes back into the queue."""
        async with asyncio.TaskGroup() as group:
            reaper = group.create_task(self._reap_for_ever(), name="reaper")
            try:
                await self._claim_until_draining(group)
                if self._running:
                    logger(__name__).info(
                        "dispatcher.draining", generations=sorted(lease.id for lease in self._running)
                    )
                    await asyncio.wait(self._running.values(), timeout=self._grace_seconds)
            finally:
                reaper.cancel()
                for task in self._running.values():
                    task.cancel()

    async def _claim_until_draining(self, group: asyncio.TaskGroup) -> None:
        with self._notifications.subscribe(QUEUE_TOPIC) as bell:
            while not self._draining.is_set():
                bell.clear()
                # Work is claimed past the slots where lighter work makes room for it between two steps.
                slots = self._workshop.pools.denoisers.slots
                among = admissible(self._workshop.tiers.values(), self._denoising.values(), slots)
                if not among or not await self._claim(group, among):
                    await _first_of(bell, self._draining, timeout=POLL_SECONDS)

    async def _claim(self, group: asyncio.TaskGroup, among: Collection[Tier]) -> bool:
        try:
            claimed = await self._workshop.leases.claim(
                self._owner, started_event=views.started_event, among=[tier.number for tier in among]
            )
        except DATABASE_AWAY as failed:
            logger(__name__).warning("claim.retry", error=type(failed).__name__)
            return False
        if claimed is None:
            return False
        lease, job = claimed
        tier = self._workshop.tiers[job.tier]
        if job.attempt == 1 and job.started is not None:
            # Gateways that share a database have clocks of their own.
            self._waits.record(max(0.0, job.started - job.created), {"tier": tier.name})
        self._denoising[lease] = tier
        task = group.create_task(self._run(lease, job), name=f"generation-{job.id}")
        self._running[lease] = task
        task.add_done_callback(lambda _: self._running.pop(lease, None))
        return True

    async def _run(self, lease: Lease, job: Job) -> None:
        """Run one lease to its end. What is cancelled from outside, at a shutdown, goes back into the queue."""
        run = Run(self._workshop, lease, job)
        freed = asyncio.create_task(self._free_slot(run, lease), name=f"slot-{job.id}")
        carrier = {"traceparent": job.traceparent}
        token = otel_context.attach(TraceContextTextMapPropagator().extract(carrier, otel_context.Context()))
        try:
            with tracer().start_as_current_span("generation", attributes={"generation.id": job.id}):
                outcome = await self._attempt(run, lease)
                if outcome is not None:
                    await self._finish(lease, outcome)
        except asyncio.CancelledError:
            await self._release(lease)
            raise
        except LeaseLost:
            logger(__name__).warning("lease.lost", generation=job.id, epoch=lease.epoch)
        finally:
            otel_context.detach(token)
            run.denoised.set()
            self._workshop.previews.forget(job.id)
            await asyncio.wait([freed])

    async def _free_slot(self, run: Run, lease: Lease) -> None:
        await run.denoised.wait()
        del self._denoising[lease]
        self._notifications.ring(QUEUE_TOPIC)

    async def _attempt(self, run: Run, lease: Lease) -> Outcome | None:
        """How the attempt ended; None when the lease was lost, or the database before the work could go on."""
        outcome: Outcome | None = None
        unread = False
        try:
            async with asyncio.TaskGroup() as group:
                beat = group.create_task(self._beat(lease), name=f"heartbeat-{lease.id}")
                sharing = group.create_task(run.share_previews(), name=f"previews-{lease.id}") if self._shares else None
                outcome = await run.work()
                beat.cancel()
                if sharing is not None:
                    sharing.cancel()
        except* LeaseLost:
            logger(__name__).warning("lease.lost", generation=lease.id, epoch=lease.epoch)
        except* DATABASE_AWAY as away:
            logger(__name__).warning("generation.retry", generation=lease.id, error=type(next(_leaves(away))).__name__)
            unread = True
        except* CancelRequested:
            outcome = run.outcome(State.CANCELLED)
        except* StageFailed as failed:
            stage = next(iter(_leaves(failed)))
            outcome = run.outcome(State.FAILED, failure=_failure(stage.stage, stage.error, run.takes))
        except* RushesError as failed:
            outcome = run.outcome(State.FAILED, failure=_failure("gateway", next(iter(_leaves(failed))), run.takes))
        except* Exception as unknown:  # noqa: BLE001 - a generation ends, whatever broke
            logger(__name__).exception("generation.broke", generation=lease.id, exc_info=unknown)
            outcome = run.outcome(State.FAILED, failure=_failure("gateway", Internal(), run.takes))
        if unread:
            await self._release_in_time(lease)
        return outcome

    async def _beat(self, lease: Lease) -> None:
        """Keep the lease, and listen for a cancellation. Raises `LeaseLost` and `CancelRequested`."""
        interval = self._lease_seconds / 3
        with self._notifications.subscribe(topic(lease.id, "cancel")) as cancelled:
            while True:
                try:
                    job = await self._workshop.leases.heartbeat(lease)
                except DATABASE_AWAY as failed:
                    logger(__name__).warning("heartbeat.retry", error=type(failed).__name__)
                else:
                    if job.cancel_requested:
                        raise CancelRequested
                await _first_of(cancelled, timeout=min(interval, POLL_SECONDS))
                cancelled.clear()

    async def _finish(self, lease: Lease, outcome: Outcome) -> None:
        while True:
            try:
                await self._workshop.leases.finish(lease, outcome)
            except DATABASE_AWAY as failed:
                logger(__name__).warning("finish.retry", error=type(failed).__name__)
                await asyncio.sleep(POLL_SECONDS)
            else:
                return

    async def _release(self, lease: Lease) -> None:
        try:
            await asyncio.shield(self._workshop.leases.release(lease, "GATEWAY_DRAINED"))
        except (LeaseLost, *DATABASE_AWAY) as failed:
            logger(__name__).warning("release.failed", generation=lease.id, error=type(failed).__name__)

    async def _release_in_time(self, lease: Lease) -> None:
        """Put a generation back once the database answers; should the lease run out before, the reaper does it."""
        while True:
            try:
                await self._workshop.leases.release(lease, "STORE_UNAVAILABLE")
            except DATABASE_AWAY:
                await asyncio.sleep(POLL_SECONDS)
            else:
                return

    async def _reap_for_ever(self) -> None:
        while True:
            try:
                for job in await self._workshop.leases.reap(
                    max_losses=self._max_losses, back_off=_back_off, failure=views.lost_failure
                ):
                    logger(__name__).warning("lease.reaped", generation=job.id, losses=job.losses, state=job.state.name)
            except DATABASE_AWAY as failed:
                logger(__name__).warning("reap.retry", error=type(failed).__name__)
            await asyncio.sleep(min(5.0, self._lease_seconds / 3) * random.uniform(0.75, 1.25))  # noqa: S311 - jitter


def _back_off(losses: int) -> float:
    return float(min(30.0, 0.25 * 2**losses))


def _failure(stage: str, error: RushesError, takes: Takes) -> bytes:
    return takes.failure(stage, error, retryable=isinstance(error, (*FAULTS, Exhausted))).SerializeToString()


def _leaves(group: BaseExceptionGroup[ErrorT]) -> Iterator[ErrorT]:
    for exception in group.exceptions:
        if isinstance(exception, BaseExceptionGroup):
            yield from _leaves(exception)
        else:
            yield exception


async def _first_of(*events: asyncio.Event, timeout: float) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
