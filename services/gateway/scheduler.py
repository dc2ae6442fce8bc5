"""Place in the queue, ETA and admission: the pure queue and the cost model, applied to what the store holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import Exhausted, NotFound
from services.gateway.cost_model import CostModel, Plan
from services.gateway.fair_queue import Forecast, Tier, forecast
from services.gateway.stages import Stages
from services.gateway.store.job import Job
from services.gateway.store.jobs import JobStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Place in the queue from 1, or 0 when it is not queued, and predicted seconds to the end."""

    position: int
    eta_seconds: float


class Scheduler:
    """Forecasts for generations, and the refusal of those that would wait too long."""

    def __init__(
        self, jobs: JobStore, stages: Stages, costs: CostModel, *, tiers: Sequence[Tier], max_queued: int
    ) -> None:
        self._jobs = jobs
        self._stages = stages
        self._costs = costs
        self._tiers = {tier.number: tier for tier in tiers}
        self._max_queued = max_queued

    def cost(self, plan: Plan) -> float:
        """Predicted device-seconds."""
        return self._costs.estimate(plan).total

    async def admit(self, tier_number: int, cost: float) -> Outlook:
        """The outlook of new work. Raises `Exhausted` when the queue is full or the wait too long for its tier."""
        found, waiting = await self._forecast(tier_number, before=float("inf"), cost=cost)
        tier = self._tiers[tier_number]
        if waiting >= self._max_queued:
            raise Exhausted(
                "The queue is full.", reason="QUEUE_FULL", retry_after_seconds=max(1.0, found.wait_seconds / 10)
            )
        if found.wait_seconds > tier.max_wait_seconds:
            raise Exhausted(
                f"The predicted wait of {found.wait_seconds:.0f} s is longer than tier {tier.name} allows.",
                reason="WAIT_TOO_LONG",
                retry_after_seconds=found.wait_seconds - tier.max_wait_seconds,
            )
        return Outlook(position=found.position, eta_seconds=found.wait_seconds + cost)

    async def outlook(self, job: Job) -> Outlook:
        """Where a queued or running generation stands."""
        if job.lease_owner is not None:
            return Outlook(position=0, eta_seconds=job.cost * (1.0 - job.progress))
        found, _ = await self._forecast(job.tier, before=job.rank, cost=job.cost)
        return Outlook(position=found.position, eta_seconds=found.wait_seconds + job.cost)

    async def _forecast(self, tier_number: int, *, before: float, cost: float) -> tuple[Forecast, int]:
        if tier_number not in self._tiers:
            raise NotFound("There is no such tier.")
        ahead, others, running = await self._jobs.backlog(tier=tier_number, before=before)
        found = forecast(
            tier=self._tiers[tier_number],
            ahead=ahead,
            cost=cost,
            others={self._tiers[number]: backlog for number, backlog in others.items()},
            running={self._tiers[number]: backlog for number, backlog in running.items()},
            devices=self._stages.denoisers.slots,
        )
        return found, ahead.count + sum(backlog.count for backlog in others.values())
