"""Three small stages with the real contract and no model: the latents are a hash that every step hashes again."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rushes.v1 import denoiser_pb2 as dn
from rushes.v1 import denoiser_pb2_grpc, encoder_pb2, encoder_pb2_grpc, postprocess_pb2_grpc
from rushes.v1 import postprocess_pb2 as pp
from rushes.v1 import sampling_pb2 as sp
from rushes.v1 import tensors_pb2 as tn
from services.chassis.bundles import Bundle, BundleReceiver, Tensor, chunks, pack, unpack
from services.chassis.config import ServiceConfig
from services.chassis.lifecycle import Mounted, run_server

MODEL = "stub"
BOTH = (sp.EXPERT_HIGH_NOISE, sp.EXPERT_LOW_NOISE)
DEFAULTS = dn.ModelDefaults(
    sampling=sp.SamplingSettings(
        solver=sp.SOLVER_EULER,
        sigma_rule=sp.SIGMA_RULE_WAN,
        steps=6,
        flow_shift=3.0,
        boundary_ratio=0.875,
        guidance_scale_high=4.0,
        guidance_scale_low=3.0,
    ),
    shape=sp.VideoShape(width=64, height=64, num_frames=5),
    fps=16,
)


@dataclass
class Behaviour:
    """What the stages do besides their work, and what they did. A closed `gate` holds the steps."""

    step_seconds: float = 0.0
    experts: tuple[sp.Expert.ValueType, ...] = BOTH
    slots: int = 4
    fragments: int = 3
    on_step: Callable[[int], None] = lambda _: None
    on_fragment: Callable[[int], None] = lambda _: None
    drain_at: set[int] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    traces: set[str] = field(default_factory=set)
    running: list[int] = field(default_factory=list)
    preempted: bool = False

    def __post_init__(self) -> None:
        self.gate.set()


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _bundle(data: bytes) -> bytes:
    return pack(Bundle(tensors={"x": Tensor(dtype="U8", shape=(len(data),), data=data)}))


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def Encode(self, request, _context):  # noqa: N802 - the name in the proto
        self.behaviour.calls.append("encode")
        payload = _bundle(_hash(request.prompt.encode(), request.negative_prompt.encode()))
        summary = encoder_pb2.TextSummary(tokens=3, total_tokens=3)
        header = tn.BundleHeader(kind=tn.BUNDLE_KIND_CONDITIONING, total_size=len(payload))
        yield encoder_pb2.EncodeResponse(
            summary=encoder_pb2.EncodeSummary(prompt=summary, seconds=0.001, bundle=header)
        )
        for chunk in chunks(tn.BUNDLE_KIND_CONDITIONING, payload):
            yield encoder_pb2.EncodeResponse(chunk=chunk)

    async def DescribeEncoder(self, _request, _context):  # noqa: N802 - the name in the proto
        return encoder_pb2.DescribeEncoderResponse(model=MODEL, fingerprint="e", max_tokens=48, slots=4)


async def _receive(requests, *kinds):
    start, received = None, []
    async for request in requests:
        if request.HasField("start"):
            start = request.start
            receivers = [BundleReceiver(kind, 2**20) for kind in kinds]
        elif receivers[len(received)].feed(request.chunk):
            received.append(bytes(unpack(receivers[len(received)].payload()).tensors["x"].data))
    return start, received


class Denoiser(denoiser_pb2_grpc.DenoiserServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def Denoise(self, request_iterator, context):  # noqa: N802 - the name in the proto
        b = self.behaviour
        b.traces.add(dict(context.invocation_metadata())["traceparent"].split("-")[1])
        b.calls.append("denoise")
        kinds = (tn.BUNDLE_KIND_CONDITIONING, tn.BUNDLE_KIND_SOLVER_STATE)
        start, received = await _receive(request_iterator, *kinds)
        total, boundary = start.sampling.steps, start.sampling.steps // 2
        x = received[1] if len(received) > 1 else _hash(start.seed.to_bytes(8, "big"), received[0])
        low = start.first_step >= boundary
        end = total if sp.EXPERT_LOW_NOISE in b.experts else boundary
        yield dn.DenoiseResponse(
            accepted=dn.DenoiseAccepted(first_step=start.first_step, end_step=end, boundary_step=boundary)
        )
        b.running.append(start.priority)
        b.preempted = len(b.running) > b.slots
        try:
            reason, index = dn.BUNDLE_REASON_COMPLETED, start.first_step
            while index < end:
                await b.gate.wait()
                b.on_step(index)
                began = time.monotonic()
                await asyncio.sleep(b.step_seconds)
                x = _hash(x, index.to_bytes(4, "big"), received[0])
                b.steps.append(index)
                low = index >= boundary
                expert = sp.EXPERT_LOW_NOISE if low else sp.EXPERT_HIGH_NOISE
                seconds = time.monotonic() - began
                yield dn.DenoiseResponse(step=dn.StepProgress(index=index, total=total, expert=expert, seconds=seconds))
                if start.previews.every_steps:
                    yield dn.DenoiseResponse(preview=dn.Preview(step_index=index, data=x * 64))
                index += 1
                if b.preempted and start.priority == min(b.running) and index < total:
                    b.preempted, reason = False, dn.BUNDLE_REASON_PREEMPTED
                    break
                if index in b.drain_at:
                    b.drain_at.discard(index)
                    reason = dn.BUNDLE_REASON_DRAINED
                    break
                if start.checkpoints.every_seconds == 0 and index < end:
                    for message in self._bundle(tn.BUNDLE_KIND_SOLVER_STATE, dn.BUNDLE_REASON_CHECKPOINT, index, x):
                        yield message
            if index < total and reason == dn.BUNDLE_REASON_COMPLETED:
                reason = dn.BUNDLE_REASON_BOUNDARY
            kind = tn.BUNDLE_KIND_LATENTS if index == total else tn.BUNDLE_KIND_SOLVER_STATE
            for message in self._bundle(kind, reason, index, x):
                yield message
            yield dn.DenoiseResponse(result=dn.DenoiseResult(reason=reason, next_step=index))
        finally:
            b.running.remove(start.priority)

    def _bundle(self, kind, reason, next_step, x):
        payload = _bundle(x)
        header = tn.BundleHeader(kind=kind, total_size=len(payload))
        yield dn.DenoiseResponse(bundle=dn.DenoiseBundle(header=header, reason=reason, next_step=next_step))
        for chunk in chunks(kind, payload):
            yield dn.DenoiseResponse(chunk=chunk)

    async def DescribeDenoiser(self, _request, _context):  # noqa: N802 - the name in the proto
        limits = dn.ModelLimits(max_width=256, max_height=256, max_frames=81, max_steps=100)
        return dn.DescribeDenoiserResponse(
            model=MODEL,
            fingerprint="d",
            experts=self.behaviour.experts,
            slots=self.behaviour.slots,
            defaults=DEFAULTS,
            limits=limits,
        )


class Postprocessor(postprocess_pb2_grpc.PostprocessServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def Render(self, request_iterator, _context):  # noqa: N802 - the name in the proto
        self.behaviour.calls.append("render")
        start, (latents,) = await _receive(request_iterator, tn.BUNDLE_KIND_LATENTS)
        yield pp.RenderResponse(
            accepted=pp.RenderAccepted(width=64, height=64, num_frames=5, fps=16, content_type="video/mp4")
        )
        clip = b""
        for index in range(self.behaviour.fragments):
            self.behaviour.on_fragment(index)
            data = _hash(latents, index.to_bytes(4, "big")) * 16
            yield pp.RenderResponse(
                progress=pp.RenderProgress(frames_decoded=index + 1, frames_total=self.behaviour.fragments)
            )
            yield pp.RenderResponse(fragment=pp.Fragment(index=index, offset=len(clip), data=data, last_part=True))
            clip += data
        for kind in start.artifacts:
            if kind == pp.ARTIFACT_KIND_VIDEO:
                digest = hashlib.sha256(clip).hexdigest()
                yield pp.RenderResponse(output=pp.OutputPart(kind=kind, name="clip.mp4", data=clip, sha256=digest))
            else:
                yield pp.RenderResponse(artifact=pp.Artifact(kind=kind, data=_hash(latents)))
        digest = hashlib.sha256(clip).hexdigest()
        yield pp.RenderResponse(result=pp.RenderResult(num_frames=5, size_bytes=len(clip), sha256=digest))

    async def PlanRender(self, request, _context):  # noqa: N802 - the name in the proto
        return pp.PlanRenderResponse(accepted=pp.RenderAccepted(video=request.start.video))

    async def DescribePostprocess(self, _request, _context):  # noqa: N802 - the name in the proto
        return pp.DescribePostprocessResponse(model=MODEL, fingerprint="p", slots=self.behaviour.slots)


@asynccontextmanager
async def serving(name: str, servicer, adder, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address of a real server of one servicer."""

    @asynccontextmanager
    async def opened(_draining):
        yield [Mounted(add_to_server=adder, servicer=servicer, full_name=f"rushes.v1.{name}")]

    async with run_server(ServiceConfig(listen=listen, grace_seconds=0), name, opened) as running:
        yield running.address


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the three stages are."""

    encoder: str
    denoiser: str
    postprocess: str


@asynccontextmanager
async def stages(behaviour: Behaviour) -> AsyncIterator[Addresses]:
    """All three stages on sockets of this process."""
    adders = encoder_pb2_grpc, denoiser_pb2_grpc, postprocess_pb2_grpc
    async with (
        serving("EncoderService", Encoder(behaviour), adders[0].add_EncoderServiceServicer_to_server) as encoder,
        serving("DenoiserService", Denoiser(behaviour), adders[1].add_DenoiserServiceServicer_to_server) as denoiser,
        serving(
            "PostprocessService", Postprocessor(behaviour), adders[2].add_PostprocessServiceServicer_to_server
        ) as postprocess,
    ):
        yield Addresses(encoder=encoder, denoiser=denoiser, postprocess=postprocess)
