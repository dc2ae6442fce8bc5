"""The classes of service as an operator sets them: weights and caps, each with the default of `fair_queue.TIERS`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.fair_queue import TIERS, Tier

Weight = Annotated[float, Field(gt=0, le=1e6, description="share of the devices while every class has work")]
Wait = Annotated[float, Field(gt=0, description="predicted seconds of waiting past which new work is refused")]
Cap = Annotated[int | None, Field(ge=1, description="how much of it may run at once, over all gateways")]


class TierConfig(BaseModel):
    """What can be set of one class."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    weight: Weight
    max_wait_seconds: Wait
    max_running: Cap = None


_DRAFT, _STANDARD, _PRIORITY, _BATCH = TIERS


class DraftConfig(TierConfig):
    """Class `draft`."""

    weight: Weight = _DRAFT.weight
    max_wait_seconds: Wait = _DRAFT.max_wait_seconds


class StandardConfig(TierConfig):
    """Class `standard`."""

    weight: Weight = _STANDARD.weight
    max_wait_seconds: Wait = _STANDARD.max_wait_seconds


class PriorityConfig(TierConfig):
    """Class `priority`."""

    weight: Weight = _PRIORITY.weight
    max_wait_seconds: Wait = _PRIORITY.max_wait_seconds


class BatchConfig(TierConfig):
    """Class `batch`: what came in one call with others."""

    weight: Weight = _BATCH.weight
    max_wait_seconds: Wait = _BATCH.max_wait_seconds


class TiersConfig(BaseModel):
    """All classes, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    draft: DraftConfig = DraftConfig()
    standard: StandardConfig = StandardConfig()
    priority: PriorityConfig = PriorityConfig()
    batch: BatchConfig = BatchConfig()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The classes with what was set."""
        return tuple(
            Tier(
                number=tier.number,
                name=tier.name,
                weight=(told := getattr(self, tier.name)).weight,
                max_wait_seconds=told.max_wait_seconds,
                max_running=told.max_running,
                precedence=tier.precedence,
                priority=tier.priority,
            )
            for tier in TIERS
        )
