"""GenerationService: the public API."""

import secrets as entropy
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from rushes.v1 import generation_pb2, generation_pb2_grpc
from services.chassis.errors import FailedPrecondition, InvalidRequest
from services.chassis.handlers import Context
from services.gateway import spec as specs
from services.gateway import views
from services.gateway.artifacts import Artifacts, sha256_of
from services.gateway.catalog import Catalog
from services.gateway.identity import current_traceparent, new_generation_id
from services.gateway.scheduler import Scheduler
from services.gateway.store.job import Job, NewJob
from services.gateway.store.jobs import JobStore
from services.gateway.store.pages import last_of_page, page_token
from services.gateway.store.transitions import State
from services.gateway.watch import Watches

DEFAULT_PAGE = 50
MAX_PAGE = 1000
CHUNK_BYTES = 2**20
LOCAL_TENANT = "local"


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """See `generation.proto`."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        watches: Watches,
        catalog: Catalog,
        scheduler: Scheduler,
        artifacts: Artifacts,
        page_key: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._watches = watches
        self._catalog = catalog
        self._scheduler = scheduler
        self._artifacts = artifacts
        self._page_key = page_key
        self._clock = clock

    async def Generate(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.GenerateRequest, _context: Context
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """Create and watch in one stream."""
        job = await self._create(LOCAL_TENANT, request.request_id, request.spec)
        ended = False
        try:
            async with aclosing(self._watches.watch(job.id, after=0)) as events:
                async for event in events:
                    ended = views.is_terminal(event)
                    yield generation_pb2.GenerateResponse(event=event)
        finally:
            if request.cancel_on_disconnect and not ended:
                await self._jobs.cancel(job.id, LOCAL_TENANT)

    async def CreateGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.CreateGenerationRequest, _context: Context
    ) -> generation_pb2.CreateGenerationResponse:
        """Queue a generation."""
        job = await self._create(LOCAL_TENANT, request.request_id, request.spec)
        return generation_pb2.CreateGenerationResponse(generation=await self._seen(job))

    async def GetGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.GetGenerationRequest, _context: Context
    ) -> generation_pb2.GetGenerationResponse:
        """Read one generation."""
        job = await self._jobs.get(request.id, LOCAL_TENANT)
        return generation_pb2.GetGenerationResponse(generation=await self._seen(job))

    async def ListGenerations(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.ListGenerationsRequest, _context: Context
    ) -> generation_pb2.ListGenerationsResponse:
        """Read a page, newest first."""
        states = sorted(State(state) for state in request.states)
        scope = f"{LOCAL_TENANT}:{','.join(map(str, states))}"
        before = last_of_page(self._page_key, scope, request.page_token) if request.page_token else None
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        found = await self._jobs.page(LOCAL_TENANT, states=states, before=before, limit=size + 1)
        response = generation_pb2.ListGenerationsResponse(
            generations=[views.generation(job, spans=False) for job in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = page_token(self._page_key, scope, found[size - 1].id)
        return response

    async def WatchGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.WatchGenerationRequest, _context: Context
    ) -> AsyncGenerator[generation_pb2.WatchGenerationResponse, None]:
        """Stream the events after a cursor."""
        job = await self._jobs.get(request.id, LOCAL_TENANT)
        if request.after_sequence > job.last_sequence:
            raise InvalidRequest.of(
                "after_sequence", f"must be at most {job.last_sequence}, the last sequence", reason="OUT_OF_RANGE"
            )
        if job.terminal and request.after_sequence == job.last_sequence:
            return
        async with aclosing(self._watches.watch(job.id, after=request.after_sequence)) as events:
            async for event in events:
                yield generation_pb2.WatchGenerationResponse(event=event)

    async def CancelGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.CancelGenerationRequest, _context: Context
    ) -> generation_pb2.CancelGenerationResponse:
        """Cancel, and answer when it has ended."""
        job = await self._jobs.cancel(request.id, LOCAL_TENANT)
        if not job.terminal:
            async with aclosing(self._watches.watch(job.id, after=job.last_sequence)) as events:
                async for _ in events:
                    pass
            job = await self._jobs.get(request.id, LOCAL_TENANT)
        return generation_pb2.CancelGenerationResponse(generation=await self._seen(job))

    async def DownloadVideo(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.DownloadVideoRequest, _context: Context
    ) -> AsyncGenerator[generation_pb2.DownloadVideoResponse, None]:
        """Stream the clip from an offset."""
        job = await self._jobs.get(request.id, LOCAL_TENANT)
        if job.clip is None or job.video is None:
            raise FailedPrecondition("The generation has no clip.", reason="NO_CLIP")
        size = generation_pb2.Video.FromString(job.video).size_bytes
        if request.offset > size:
            raise InvalidRequest.of("offset", f"must be at most {size}, the size of the clip", reason="OUT_OF_RANGE")
        sha256, offset = sha256_of(job.clip), request.offset
        pieces = self._artifacts.read(job.clip, offset=offset, size=size, chunk_bytes=CHUNK_BYTES)
        async with aclosing(pieces) as chunks:
            async for data in chunks:
                yield generation_pb2.DownloadVideoResponse(
                    offset=offset,
                    data=data,
                    total_size=size,
                    sha256=sha256 if offset + len(data) == size else "",
                )
                offset += len(data)
        if request.offset == size:
            yield generation_pb2.DownloadVideoResponse(offset=size, total_size=size, sha256=sha256)

    async def _create(self, tenant: str, request_id: str, asked: generation_pb2.GenerationSpec) -> Job:
        digest = specs.request_digest(asked)
        request_id = request_id or str(uuid.uuid4())
        known = await self._jobs.find_request(tenant, request_id, digest)
        if known is not None:
            return known
        model = self._catalog.find(asked.model).message
        spec = specs.resolve(asked, model, seed=entropy.randbits(32))
        cost = self._scheduler.cost(specs.plan(spec))
        outlook = await self._scheduler.admit(spec.tier, cost)
        job, _ = await self._jobs.create(
            NewJob(
                id=new_generation_id(self._clock()),
                tenant=tenant,
                tier=spec.tier,
                request_id=request_id,
                request_digest=digest,
                fingerprint=specs.fingerprint(spec, model.fingerprint),
                spec=spec.SerializeToString(deterministic=True),
                cost=cost,
                traceparent=current_traceparent(),
            ),
            queued_event=lambda job: views.queued_event(
                job, position=outlook.position, eta_seconds=outlook.eta_seconds
            ),
        )
        return job

    async def _seen(self, job: Job) -> generation_pb2.Generation:
        seen = views.generation(job)
        if not job.terminal:
            outlook = await self._scheduler.outlook(job)
            seen.queue_position = outlook.position
            seen.eta_seconds = outlook.eta_seconds
        return seen
