"""Making generations: settings, fingerprint, quota, admission, and the row."""

import secrets as entropy
import uuid
from collections.abc import Callable, Sequence

from rushes.v1 import generation_pb2
from services.chassis.errors import InvalidRequest
from services.gateway import spec as specs
from services.gateway import views
from services.gateway.access import Access
from services.gateway.catalog import Catalog
from services.gateway.fair_queue import BATCH
from services.gateway.identity import current_traceparent, new_generation_id
from services.gateway.rehearsal import Rehearsal
from services.gateway.scheduler import Scheduler
from services.gateway.store.job import Job, NewJob
from services.gateway.store.jobs import JobStore
from services.gateway.store.tenants import Tenant


class Creation:
    """Turns what a caller asks for into queued generations."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        catalog: Catalog,
        scheduler: Scheduler,
        access: Access,
        rehearsal: Rehearsal,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._scheduler = scheduler
        self._access = access
        self._rehearsal = rehearsal
        self._clock = clock

    async def create(
        self, tenant: Tenant, request_id: str, asked: generation_pb2.GenerationSpec, *, cached: bool = False
    ) -> Job:
        """One generation; the first one again for a request id that is known."""
        digest = specs.request_digest(asked)
        request_id = request_id or str(uuid.uuid4())
        known = await self._jobs.find_request(tenant.name, request_id, digest)
        if known is not None:
            return known
        await self._access.admit(tenant)
        new, spec = await self._new(tenant, request_id, digest, asked)
        outlook = await self._scheduler.admit(spec.tier, new.cost)
        job, _ = await self._jobs.create(
            new,
            queued_event=lambda job: views.queued_event(
                job, position=outlook.position, eta_seconds=outlook.eta_seconds
            ),
            cached=cached,
        )
        return job

    async def create_all(
        self, tenant: Tenant, request_id: str, asked: Sequence[generation_pb2.GenerationSpec]
    ) -> list[Job]:
        """Many generations in the tier of batches, or none."""
        request_id = request_id or str(uuid.uuid4())
        new = [
            (await self._new(tenant, f"{request_id}/{place}", specs.request_digest(one), one, batch=True))[0]
            for place, one in enumerate(asked)
        ]
        if await self._jobs.find_request(tenant.name, new[0].request_id, new[0].request_digest) is None:
            await self._access.admit(tenant, len(new))
            await self._scheduler.admit(BATCH, sum(one.cost for one in new))
        return await self._jobs.create_all(
            new, queued_event=lambda job: views.queued_event(job, position=0, eta_seconds=None)
        )

    async def _new(
        self,
        tenant: Tenant,
        request_id: str,
        digest: str,
        asked: generation_pb2.GenerationSpec,
        *,
        batch: bool = False,
    ) -> tuple[NewJob, generation_pb2.GenerationSpec]:
        known = self._catalog.find(asked.model)
        model = known.message
        for place, adapter in enumerate(asked.adapters):
            if adapter.id not in known.adapters:
                offered = ", ".join(sorted(known.adapters)) or "none are offered"
                raise InvalidRequest.of(
                    f"spec.adapters[{place}].id",
                    f"must be an adapter of the model: {offered}",
                    reason="ADAPTER_UNKNOWN",
                )
        spec = specs.resolve(asked, model, seed=entropy.randbits(32))
        await self._rehearsal.check(spec)
        if batch:
            spec.tier = generation_pb2.TIER_DRAFT
        new = NewJob(
            id=new_generation_id(self._clock()),
            tenant=tenant.name,
            tier=BATCH if batch else spec.tier,
            request_id=request_id,
            request_digest=digest,
            fingerprint=specs.fingerprint(spec, model.fingerprint),
            spec=spec.SerializeToString(deterministic=True),
            cost=self._scheduler.cost(specs.plan(spec)),
            traceparent=current_traceparent(),
            weight=tenant.quota.weight,
        )
        return new, spec
