"""CatalogService: what can be asked for."""

import math
from collections.abc import Sequence

from rushes.v1 import catalog_pb2, catalog_pb2_grpc
from services.chassis.incoming import Context
from services.gateway.access import Access
from services.gateway.catalog import Catalog
from services.gateway.fair_queue import Tier
from services.gateway.outage import answers_outages
from services.gateway.stages import Stages

MAX_PROMPT_CHARACTERS = 8000
"""As the constraint in `generation.proto` says."""


@answers_outages
class CatalogService(catalog_pb2_grpc.CatalogServiceServicer):
    """See `catalog.proto`."""

    def __init__(
        self,
        catalog: Catalog,
        stages: Stages,
        access: Access,
        *,
        tiers: Sequence[Tier],
        max_queued: int,
        max_message_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._stages = stages
        self._access = access
        self._tiers = tiers
        self._max_queued = max_queued
        self._max_message_bytes = max_message_bytes

    async def ListModels(  # noqa: N802 - the name in the proto
        self, _request: catalog_pb2.ListModelsRequest, context: Context
    ) -> catalog_pb2.ListModelsResponse:
        """The models whose stages all answer."""
        await self._access.tenant(context, "read")
        return catalog_pb2.ListModelsResponse(models=[known.message for known in self._catalog.models()])

    async def GetLimits(  # noqa: N802 - the name in the proto
        self, _request: catalog_pb2.GetLimitsRequest, context: Context
    ) -> catalog_pb2.GetLimitsResponse:
        """What this gateway takes."""
        await self._access.tenant(context, "read")
        return catalog_pb2.GetLimitsResponse(
            max_prompt_characters=MAX_PROMPT_CHARACTERS,
            max_queued=self._max_queued,
            max_running=self._stages.denoisers.slots,
            max_message_bytes=self._max_message_bytes,
            tiers=[
                catalog_pb2.TierLimits(
                    name=tier.name,
                    weight=tier.weight,
                    max_wait_seconds=tier.max_wait_seconds if math.isfinite(tier.max_wait_seconds) else None,
                    max_running=tier.max_running,
                )
                for tier in self._tiers
            ],
        )
