"""A small gateway that follows a script: real gRPC, with faults where a test wants them."""
# ruff: noqa: N802 - methods have their names from the protos

import asyncio
import hashlib
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from rushes.v1 import catalog_pb2, generation_pb2, postprocess_pb2, sampling_pb2, usage_pb2
from rushes.v1.catalog_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server
from rushes.v1.denoiser_pb2 import StepProgress
from rushes.v1.generation_pb2 import Generation, GenerationEvent, GenerationState
from rushes.v1.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server
from rushes.v1.latency_pb2 import LatencyBreakdown, Span
from rushes.v1.usage_pb2_grpc import UsageServiceServicer, add_UsageServiceServicer_to_server

CLIP = bytes(range(256)) * 1024
SHEET = b"\x89PNG\r\n\x1a\n a contact sheet"
STEPS = 4


@dataclass(kw_only=True)
class Fault:
    """What happens to one stream: after `after` messages of it, `status` is raised or the stream goes silent."""

    after: int
    status: status_pb2.Status | None = None
    silent: bool = False
    plain: grpc.StatusCode | None = None
    ends: bool = False
    skips: int = 0
    rewinds: int = 0


@dataclass(kw_only=True)
class Script:
    """What the gateway does, and what it saw.

    A download breaks once its client has what was sent before, if `downloaded` tells how many bytes it has.
    """

    faults: deque[Fault] = field(default_factory=deque)
    unary_faults: deque[status_pb2.Status] = field(default_factory=deque)
    step_seconds: float = 0.0
    ends_in: str = "succeeded"
    clip: bytes = CLIP
    stated_sha256: str | None = None
    calls: list[tuple[str, Message, dict[str, str]]] = field(default_factory=list)
    created: dict[str, Generation] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    downloaded: Callable[[], int] | None = None

    def seen(self, method: str) -> list[Message]:
        return [request for name, request, _ in self.calls if name == method]


def status(code: grpc.StatusCode, message: str, reason: str, *details: Message) -> status_pb2.Status:
    """A rich status as the suite's services write it."""
    answer = status_pb2.Status(code=code.value[0], message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="rushes.dev"), *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        answer.details.append(packed)
    return answer


async def _abort(context: grpc.aio.ServicerContext, answer: status_pb2.Status) -> NoReturn:
    code = next(code for code in grpc.StatusCode if code.value[0] == answer.code)
    await context.abort(code, answer.message, (("grpc-status-details-bin", answer.SerializeToString()),))


class ScriptedGateway(GenerationServiceServicer, CatalogServiceServicer, UsageServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def Generate(self, request, context):
        await self._enter("Generate", request, context)
        if not request.spec.prompt:
            await _abort(context, empty_prompt())
        generation = self._create(request.request_id, request.spec)
        async for event in self._stream(generation, 0, context):
            yield generation_pb2.GenerateResponse(event=event)

    async def WatchGeneration(self, request, context):
        await self._enter("WatchGeneration", request, context)
        generation = await self._find(request.id, context)
        async for event in self._stream(generation, request.after_sequence, context):
            yield generation_pb2.WatchGenerationResponse(event=event)

    async def CreateGeneration(self, request, context):
        await self._enter("CreateGeneration", request, context)
        return generation_pb2.CreateGenerationResponse(generation=self._create(request.request_id, request.spec))

    async def GetGeneration(self, request, context):
        await self._enter("GetGeneration", request, context)
        return generation_pb2.GetGenerationResponse(generation=self.ended(await self._find(request.id, context)))

    async def ListGenerations(self, request, context):
        await self._enter("ListGenerations", request, context)
        first = int(request.page_token or 0)
        every = list(self.script.created.values())
        page = every[first : first + request.page_size]
        more = first + len(page) < len(every)
        return generation_pb2.ListGenerationsResponse(
            generations=page, next_page_token=str(first + len(page)) if more else ""
        )

    async def CancelGeneration(self, request, context):
        await self._enter("CancelGeneration", request, context)
        generation = await self._find(request.id, context)
        self.script.cancelled.add(request.id)
        return generation_pb2.CancelGenerationResponse(generation=self.ended(generation, "cancelled"))

    async def DownloadVideo(self, request, context):
        await self._enter("DownloadVideo", request, context)
        await self._find(request.id, context)
        fault = self.script.faults.popleft() if self.script.faults else None
        clip = self.script.clip
        size = len(clip) // 8
        for count, offset in enumerate(range(request.offset, len(clip), size)):
            if fault is not None and count == fault.after:
                while self.script.downloaded is not None and self.script.downloaded() < offset:  # noqa: ASYNC110 - a count
                    await asyncio.sleep(0.005)
                if fault.plain is not None:
                    await context.abort(fault.plain, "injected")
                return
            last = offset + size >= len(clip)
            yield generation_pb2.DownloadVideoResponse(
                offset=offset,
                data=clip[offset : offset + size],
                total_size=len(clip),
                sha256=(self.script.stated_sha256 or hashlib.sha256(clip).hexdigest()) if last else "",
            )

    async def CreateGenerations(self, request, context):
        await self._enter("CreateGenerations", request, context)
        made = [self._create(f"{request.request_id}/{number}", spec) for number, spec in enumerate(request.specs)]
        return generation_pb2.CreateGenerationsResponse(generations=made)

    async def RegenerateGeneration(self, request, context):
        await self._enter("RegenerateGeneration", request, context)
        spec = generation_pb2.GenerationSpec()
        spec.CopyFrom((await self._find(request.id, context)).spec)
        spec.seed = request.seed if request.HasField("seed") else spec.seed + 1
        return generation_pb2.RegenerateGenerationResponse(generation=self._create(request.request_id, spec))

    async def DeleteGeneration(self, request, context):
        await self._enter("DeleteGeneration", request, context)
        gone = await self._find(request.id, context)
        self.script.created = {key: one for key, one in self.script.created.items() if one.id != gone.id}
        return generation_pb2.DeleteGenerationResponse()

    async def GetUsage(self, request, context):
        await self._enter("GetUsage", request, context)
        bucket = usage_pb2.UsageBucket(generations=3, denoise_seconds=12.5, frames=51, size_bytes=30_000)
        bucket.start_time.FromJsonString("2026-11-20T00:00:00Z")
        return usage_pb2.GetUsageResponse(buckets=[bucket])

    async def ListModels(self, request, context):
        await self._enter("ListModels", request, context)
        model = catalog_pb2.Model(id="scripted", display_name="Scripted", notice="follows a script", demonstration=True)
        model.defaults.shape.width = 64
        return catalog_pb2.ListModelsResponse(models=[model])

    async def GetLimits(self, request, context):
        await self._enter("GetLimits", request, context)
        return catalog_pb2.GetLimitsResponse(max_prompt_characters=8000)

    async def _enter(self, method: str, request: Message, context: grpc.aio.ServicerContext) -> None:
        self.script.calls.append((method, request, dict(context.invocation_metadata())))
        if self.script.unary_faults:
            await _abort(context, self.script.unary_faults.popleft())

    async def _find(self, generation_id: str, context: grpc.aio.ServicerContext) -> Generation:
        found = [one for one in self.script.created.values() if one.id == generation_id]
        if not found:
            answer = status(grpc.StatusCode.NOT_FOUND, f"no generation {generation_id}", "GENERATION_UNKNOWN")
            await _abort(context, answer)
        return found[0]

    def _create(self, request_id: str, spec: generation_pb2.GenerationSpec) -> Generation:
        if request_id not in self.script.created:
            generation = Generation(
                id=f"g-{uuid.uuid4().hex[:8]}", spec=spec, state=GenerationState.GENERATION_STATE_QUEUED
            )
            generation.spec.seed = spec.seed
            generation.spec.num_frames = 17
            generation.spec.width = generation.spec.height = 64
            generation.spec.fps = 16
            self.script.created[request_id] = generation
        return self.script.created[request_id]

    def ended(self, generation: Generation, ends_in: str | None = None) -> Generation:
        """The generation as it is at its end."""
        ends_in = ends_in or self.script.ends_in
        answer = Generation()
        answer.CopyFrom(generation)
        answer.state = GenerationState.Value(f"GENERATION_STATE_{ends_in.upper()}")
        answer.latency.CopyFrom(_latency())
        answer.trace_id = answer.latency.trace_id
        if ends_in == "succeeded":
            answer.video.CopyFrom(
                generation_pb2.Video(
                    width=64,
                    height=64,
                    num_frames=17,
                    fps=16,
                    size_bytes=len(self.script.clip),
                    sha256=self.script.stated_sha256 or hashlib.sha256(self.script.clip).hexdigest(),
                )
            )
        if ends_in == "failed":
            answer.failure.CopyFrom(
                generation_pb2.Failure(reason="DEVICE_LOST", message="the device was lost", stage="denoiser")
            )
        return answer

    def history(self, generation: Generation) -> list[GenerationEvent]:
        """Every durable event of a generation."""
        clip, half = self.script.clip, len(self.script.clip) // 2
        ends_in = "cancelled" if generation.id in self.script.cancelled else self.script.ends_in
        bodies: list[dict[str, Message]] = [
            {"queued": generation_pb2.QueuedEvent(position=1, generation=generation)},
            {"started": generation_pb2.StartedEvent(attempt=1)},
            {"encoded": generation_pb2.EncodedEvent(tokens=7, total_tokens=7, seconds=0.01)},
            {"denoising": generation_pb2.DenoisingEvent(end_step=STEPS, total_steps=STEPS, boundary_step=2)},
        ]
        bodies += [
            {
                "step": StepProgress(
                    index=index,
                    total=STEPS,
                    expert=sampling_pb2.EXPERT_HIGH_NOISE if index < 2 else sampling_pb2.EXPERT_LOW_NOISE,
                    seconds=0.1,
                    eta_seconds=0.1 * (STEPS - 1 - index),
                )
            }
            for index in range(STEPS)
        ]
        if ends_in == "succeeded":
            bodies += [
                {"rendering": postprocess_pb2.RenderAccepted(width=64, height=64, num_frames=17, fps=16)},
                {"fragment": postprocess_pb2.Fragment(index=0, offset=0, data=clip[:half], last_part=True)},
                {"rendered": postprocess_pb2.RenderProgress(frames_decoded=17, frames_total=17, seconds=0.2)},
                {"fragment": postprocess_pb2.Fragment(index=1, offset=half, data=clip[half:], last_part=True)},
                {
                    "artifact": postprocess_pb2.Artifact(
                        kind=postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET,
                        format=sampling_pb2.IMAGE_FORMAT_PNG,
                        data=SHEET,
                    )
                },
            ]
        ended = self.ended(generation, ends_in)
        last = {
            "succeeded": generation_pb2.SucceededEvent(generation=ended),
            "failed": generation_pb2.FailedEvent(generation=ended),
            "cancelled": generation_pb2.CancelledEvent(generation=ended, steps_run=2),
        }
        bodies.append({ends_in: last[ends_in]})
        return [
            GenerationEvent(sequence=sequence, generation_id=generation.id, **body)  # type: ignore[arg-type]  # a oneof by name
            for sequence, body in enumerate(bodies, 1)
        ]

    async def _stream(
        self, generation: Generation, after: int, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[GenerationEvent]:
        fault = self.script.faults.popleft() if self.script.faults else None
        yield GenerationEvent(generation_id=generation.id, heartbeat=generation_pb2.HeartbeatEvent())
        position, sent = after - (fault.rewinds if fault else 0), 0
        while True:
            history = self.history(generation)
            if fault is not None and sent == fault.after:
                if fault.status is not None:
                    await _abort(context, fault.status)
                if fault.plain is not None:
                    await context.abort(fault.plain, "injected")
                if fault.silent:
                    await asyncio.sleep(3600)
                if fault.ends:
                    return
                position += fault.skips
                fault = None
            event = history[position]
            if event.WhichOneof("event") == "step":
                await asyncio.sleep(self.script.step_seconds)
                event = self.history(generation)[position]
                yield GenerationEvent(
                    generation_id=generation.id,
                    preview=generation_pb2.PreviewEvent(
                        preview={"step_index": event.step.index, "format": "IMAGE_FORMAT_WEBP", "data": b"webp"},
                        dropped=0,
                    ),
                )
            yield event
            position, sent = position + 1, sent + 1
            if event.WhichOneof("event") in {"succeeded", "failed", "cancelled"}:
                return


def _latency() -> LatencyBreakdown:
    spans = [
        Span(name="generation", stage="gateway", start_seconds=0.0, duration_seconds=1.0),
        Span(name="encode", stage="encoder", start_seconds=0.1, duration_seconds=0.1, parent="generation"),
        Span(name="denoise", stage="denoiser", start_seconds=0.2, duration_seconds=0.5, parent="generation"),
        *(
            Span(
                name="denoise.step",
                stage="denoiser",
                start_seconds=0.2 + 0.1 * index,
                duration_seconds=0.1,
                parent="denoise",
                attributes={"index": str(index)},
            )
            for index in range(STEPS)
        ),
    ]
    return LatencyBreakdown(
        total_seconds=1.0,
        queue_seconds=0.1,
        encode_seconds=0.1,
        high_noise_seconds=0.2,
        low_noise_seconds=0.2,
        decode_seconds=0.3,
        video_encode_seconds=0.05,
        other_seconds=0.05,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        spans=spans,
    )


def empty_prompt() -> status_pb2.Status:
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.prompt", description="must not be empty")
    return status(
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request breaks a rule",
        "INVALID_REQUEST",
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


@asynccontextmanager
async def serving(script: Script, address: str) -> AsyncIterator[ScriptedGateway]:
    """The gateway, serving at the address while the block runs."""
    server = grpc.aio.server()
    gateway = ScriptedGateway(script)
    add_GenerationServiceServicer_to_server(gateway, server)
    add_CatalogServiceServicer_to_server(gateway, server)
    add_UsageServiceServicer_to_server(gateway, server)
    assert server.add_insecure_port(address)
    await server.start()
    try:
        yield gateway
    finally:
        await server.stop(None)
