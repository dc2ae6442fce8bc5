"""GenerationService: the public API."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from rushes.v1 import generation_pb2, generation_pb2_grpc, postprocess_pb2
from services.chassis.errors import FailedPrecondition, NotFound, OutOfRange, Resource
from services.chassis.incoming import Context
from services.gateway import views
from services.gateway.access import Access
from services.gateway.artifacts import Artifacts, clip_key
from services.gateway.creation import Creation
from services.gateway.outage import answers_outages
from services.gateway.pool import Pool
from services.gateway.scheduler import Scheduler
from services.gateway.stages import render_frames
from services.gateway.store.job import Job
from services.gateway.store.jobs import JobStore
from services.gateway.store.pages import last_of_page, page_token
from services.gateway.store.transitions import State
from services.gateway.watch import Watches

DEFAULT_PAGE = 50
MAX_PAGE = 1000
CHUNK_BYTES = 2**20
FRAMES_WAIT_SECONDS = 10.0
FRAMES_SECONDS = 600.0


@answers_outages
class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """See `generation.proto`."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        watches: Watches,
        creation: Creation,
        access: Access,
        scheduler: Scheduler,
        artifacts: Artifacts,
        postprocessors: Pool[postprocess_pb2.DescribePostprocessResponse],
        page_key: bytes,
    ) -> None:
        self._postprocessors = postprocessors
        self._jobs = jobs
        self._watches = watches
        self._creation = creation
        self._access = access
        self._scheduler = scheduler
        self._artifacts = artifacts
        self._page_key = page_key

    async def Generate(  # type: ignore[override]  # noqa: N802 - serialised by the watch; the name in the proto
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Create and watch in one stream."""
        tenant = await self._access.tenant(context, "generate")
        cached = request.cache == generation_pb2.CACHE_MODE_PREFER
        job = await self._creation.create(tenant, request.request_id, request.spec, cached=cached)
        ended = False
        try:
            async with aclosing(self._watches.watch(job.id, after=0)) as events:
                async for event in events:
                    ended = event.terminal
                    yield event.response
        finally:
            if request.cancel_on_disconnect and not ended:
                await self._jobs.cancel(job.id, tenant.name)

    async def CreateGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.CreateGenerationRequest, context: Context
    ) -> generation_pb2.CreateGenerationResponse:
        """Queue a generation."""
        tenant = await self._access.tenant(context, "generate")
        cached = request.cache == generation_pb2.CACHE_MODE_PREFER
        job = await self._creation.create(tenant, request.request_id, request.spec, cached=cached)
        return generation_pb2.CreateGenerationResponse(generation=await self._seen(job))

    async def GetGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.GetGenerationRequest, context: Context
    ) -> generation_pb2.GetGenerationResponse:
        """Read one generation."""
        tenant = await self._access.tenant(context, "read")
        job = await self._jobs.get(request.id, tenant.name)
        return generation_pb2.GetGenerationResponse(generation=await self._seen(job))

    async def ListGenerations(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.ListGenerationsRequest, context: Context
    ) -> generation_pb2.ListGenerationsResponse:
        """Read a page, newest first."""
        tenant = await self._access.tenant(context, "read")
        states = sorted(State(state) for state in request.states)
        scope = f"{tenant.name}:{','.join(map(str, states))}"
        before = last_of_page(self._page_key, scope, request.page_token) if request.page_token else None
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        found = await self._jobs.page(tenant.name, states=states, before=before, limit=size + 1)
        response = generation_pb2.ListGenerationsResponse(
            generations=[views.generation(job, spans=False) for job in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = page_token(self._page_key, scope, found[size - 1].id)
        return response

    async def WatchGeneration(  # type: ignore[override]  # noqa: N802 - serialised by the watch; the name in the proto
        self, request: generation_pb2.WatchGenerationRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Stream the events after a cursor."""
        tenant = await self._access.tenant(context, "read")
        job = await self._jobs.get(request.id, tenant.name)
        if request.after_sequence > job.last_sequence:
            raise OutOfRange.of("after_sequence", f"must be at most {job.last_sequence}, the last sequence")
        if job.terminal and request.after_sequence == job.last_sequence:
            return
        async with aclosing(self._watches.watch(job.id, after=request.after_sequence)) as events:
            async for event in events:
                yield event.response

    async def CancelGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.CancelGenerationRequest, context: Context
    ) -> generation_pb2.CancelGenerationResponse:
        """Cancel, and answer when it has ended."""
        tenant = await self._access.tenant(context, "generate")
        job = await self._jobs.cancel(request.id, tenant.name)
        if not job.terminal:
            async with aclosing(self._watches.watch(job.id, after=job.last_sequence)) as events:
                async for _ in events:
                    pass
            tenant = await self._access.tenant(context, "read")
        job = await self._jobs.get(request.id, tenant.name)
        return generation_pb2.CancelGenerationResponse(generation=await self._seen(job))

    async def DownloadVideo(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.DownloadVideoRequest, context: Context
    ) -> AsyncGenerator[generation_pb2.DownloadVideoResponse, None]:
        """Stream the clip, or another file made from it, from an offset."""
        tenant = await self._access.tenant(context, "read")
        job = await self._jobs.get(request.id, tenant.name)
        if job.clip is None or job.video is None:
            raise FailedPrecondition("The generation has no clip.", reason="NO_CLIP")
        video = generation_pb2.Video.FromString(job.video)
        file = _output(video, request.output)
        size, sha256, offset = file.size_bytes, file.sha256, request.offset
        if offset > size:
            raise OutOfRange.of("offset", f"must be at most {size}, the size of the file")
        pieces = self._artifacts.read(clip_key(sha256), offset=offset, size=size, chunk_bytes=CHUNK_BYTES)
        async with aclosing(pieces) as chunks:
            async for data in chunks:
                yield generation_pb2.DownloadVideoResponse(
                    offset=offset,
                    data=data,
                    total_size=size,
                    sha256=sha256 if offset + len(data) == size else "",
                    md5=file.md5 if offset + len(data) == size else "",
                )
                offset += len(data)
        if request.offset == size:
            yield generation_pb2.DownloadVideoResponse(offset=size, total_size=size, sha256=sha256, md5=file.md5)

    async def DownloadFrames(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.DownloadFramesRequest, context: Context
    ) -> AsyncGenerator[generation_pb2.DownloadFramesResponse, None]:
        """Stream frames of the clip as pictures, decoded by a postprocessor."""
        tenant = await self._access.tenant(context, "read")
        job = await self._jobs.get(request.id, tenant.name)
        if job.clip is None or job.video is None:
            raise FailedPrecondition("The generation has no clip.", reason="NO_CLIP")
        video = generation_pb2.Video.FromString(job.video)
        if request.range.first_frame >= video.num_frames:
            raise OutOfRange.of("range.first_frame", f"must be less than {video.num_frames}, the number of frames")
        clip = self._artifacts.read(job.clip, offset=0, size=video.size_bytes, chunk_bytes=CHUNK_BYTES)
        async with (
            self._postprocessors.slot(fits=lambda _: True, wait_seconds=FRAMES_WAIT_SECONDS) as endpoint,
            aclosing(clip) as pieces,
            aclosing(render_frames(endpoint, request.range, pieces, timeout=FRAMES_SECONDS)) as frames,
        ):
            async for frame in frames:
                yield generation_pb2.DownloadFramesResponse(frame=frame)

    async def CreateGenerations(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.CreateGenerationsRequest, context: Context
    ) -> generation_pb2.CreateGenerationsResponse:
        """Queue many generations, or none."""
        tenant = await self._access.tenant(context, "generate")
        made = await self._creation.create_all(tenant, request.request_id, request.specs)
        return generation_pb2.CreateGenerationsResponse(generations=[views.generation(job) for job in made])

    async def DeleteGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.DeleteGenerationRequest, context: Context
    ) -> generation_pb2.DeleteGenerationResponse:
        """Remove a generation that has ended; its clip goes with the next sweep."""
        tenant = await self._access.tenant(context, "generate")
        if not await self._jobs.delete(request.id, tenant.name):
            raise FailedPrecondition("The generation has not ended: cancel it first.", reason="NOT_ENDED")
        return generation_pb2.DeleteGenerationResponse()

    async def RegenerateGeneration(  # noqa: N802 - the name in the proto
        self, request: generation_pb2.RegenerateGenerationRequest, context: Context
    ) -> generation_pb2.RegenerateGenerationResponse:
        """Queue a generation with the settings of another and a new seed."""
        tenant = await self._access.tenant(context, "generate")
        spec = generation_pb2.GenerationSpec.FromString((await self._jobs.get(request.id, tenant.name)).spec)
        spec.ClearField("seed")
        if request.HasField("seed"):
            spec.seed = request.seed
        job = await self._creation.create(tenant, request.request_id, spec)
        return generation_pb2.RegenerateGenerationResponse(generation=await self._seen(job))

    async def _seen(self, job: Job) -> generation_pb2.Generation:
        seen = views.generation(job)
        if not job.terminal:
            outlook = await self._scheduler.outlook(job)
            seen.queue_position = outlook.position
            seen.eta_seconds = outlook.eta_seconds
        return seen


def _output(video: generation_pb2.Video, name: str) -> postprocess_pb2.OutputFile:
    """The file of this name, the clip itself for an empty one. Raises `NotFound`."""
    if not name:
        return postprocess_pb2.OutputFile(size_bytes=video.size_bytes, sha256=video.sha256, md5=video.md5)
    for file in video.outputs:
        if file.name == name:
            return file
    raise NotFound(
        "The generation has no file of that name.",
        reason="OUTPUT_NOT_FOUND",
        resource=Resource(kind="output", name=name),
    )
