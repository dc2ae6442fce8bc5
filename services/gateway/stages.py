"""The stages as typed async functions: the only file of the gateway that knows the other services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from rushes.v1 import denoiser_pb2, encoder_pb2, postprocess_pb2, sampling_pb2, tensors_pb2
from rushes.v1.denoiser_pb2_grpc import DenoiserServiceStub
from rushes.v1.encoder_pb2_grpc import EncoderServiceStub
from rushes.v1.postprocess_pb2_grpc import PostprocessServiceStub
from services.chassis import bundles
from services.chassis.channels import scoped
from services.chassis.errors import DataLoss, from_rpc_error
from services.gateway.pool import Endpoint, Pool

MAX_BUNDLE_BYTES = 2**30
DESCRIBE_TIMEOUT_SECONDS = 5.0

Encoder: TypeAlias = Endpoint[encoder_pb2.DescribeEncoderResponse]
Denoiser: TypeAlias = Endpoint[denoiser_pb2.DescribeDenoiserResponse]
Postprocessor: TypeAlias = Endpoint[postprocess_pb2.DescribePostprocessResponse]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Answer of the encoder: its summary and the CONDITIONING bundle."""

    summary: encoder_pb2.EncodeSummary
    conditioning: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverBundle:
    """A bundle out of the denoiser: LATENTS or SOLVER_STATE, why it came, and the first step that has not run."""

    kind: tensors_pb2.BundleKind.ValueType
    reason: denoiser_pb2.BundleReason.ValueType
    next_step: int
    payload: bytes


DenoiseItem: TypeAlias = (
    denoiser_pb2.DenoiseAccepted
    | denoiser_pb2.StepProgress
    | denoiser_pb2.Preview
    | SolverBundle
    | denoiser_pb2.DenoiseResult
)
RenderItem: TypeAlias = (
    postprocess_pb2.RenderAccepted
    | postprocess_pb2.RenderProgress
    | postprocess_pb2.Fragment
    | postprocess_pb2.Artifact
    | postprocess_pb2.OutputPart
    | postprocess_pb2.RenderResult
)


class Stages:
    """The three pools, and what their processes say of themselves."""

    def __init__(self, *, encoders: Sequence[str], denoisers: Sequence[str], postprocessors: Sequence[str]) -> None:
        self.encoders: Pool[encoder_pb2.DescribeEncoderResponse] = Pool("encoder", encoders)
        self.denoisers: Pool[denoiser_pb2.DescribeDenoiserResponse] = Pool("denoiser", denoisers)
        self.postprocessors: Pool[postprocess_pb2.DescribePostprocessResponse] = Pool("postprocess", postprocessors)

    async def close(self) -> None:
        """Close every channel."""
        for pool in (self.encoders, self.denoisers, self.postprocessors):
            await pool.close()

    @property
    def complete(self) -> bool:
        """Whether every stage has a process that answered."""
        return all(pool.slots for pool in (self.encoders, self.denoisers, self.postprocessors))

    async def refresh(self) -> None:
        """Ask every process what it is."""
        async with asyncio.TaskGroup() as group:
            for encoder in self.encoders.endpoints:
                group.create_task(self._describe_encoder(encoder))
            for denoiser in self.denoisers.endpoints:
                group.create_task(self._describe_denoiser(denoiser))
            for postprocessor in self.postprocessors.endpoints:
                group.create_task(self._describe_postprocessor(postprocessor))

    async def _describe_encoder(self, endpoint: Encoder) -> None:
        request = encoder_pb2.DescribeEncoderRequest()
        call = EncoderServiceStub(endpoint.channel).DescribeEncoder(request, timeout=DESCRIBE_TIMEOUT_SECONDS)
        found = await _answer_or_none(call)
        self.encoders.update(endpoint, found, found.slots if found else 0, reachable=found is not None)

    async def _describe_denoiser(self, endpoint: Denoiser) -> None:
        request = denoiser_pb2.DescribeDenoiserRequest()
        call = DenoiserServiceStub(endpoint.channel).DescribeDenoiser(request, timeout=DESCRIBE_TIMEOUT_SECONDS)
        found = await _answer_or_none(call)
        self.denoisers.update(endpoint, found, found.slots if found else 0, reachable=found is not None)

    async def _describe_postprocessor(self, endpoint: Postprocessor) -> None:
        request = postprocess_pb2.DescribePostprocessRequest()
        call = PostprocessServiceStub(endpoint.channel).DescribePostprocess(request, timeout=DESCRIBE_TIMEOUT_SECONDS)
        found = await _answer_or_none(call)
        self.postprocessors.update(endpoint, found, found.slots if found else 0, reachable=found is not None)


async def _answer_or_none(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError:
        return None


async def encode(endpoint: Encoder, request: encoder_pb2.EncodeRequest, *, timeout: float) -> Encoded:
    """Embed the texts. Raises the encoder's error."""
    receiver = bundles.BundleReceiver(tensors_pb2.BUNDLE_KIND_CONDITIONING, MAX_BUNDLE_BYTES)
    summary: encoder_pb2.EncodeSummary | None = None
    async for response in _responses(EncoderServiceStub(endpoint.channel).Encode(request, timeout=timeout)):
        if response.WhichOneof("message") == "summary":
            summary = response.summary
        else:
            receiver.feed(response.chunk)
    if summary is None:
        raise DataLoss("The encoder's stream ended early.", reason="STREAM_TRUNCATED")
    return Encoded(summary=summary, conditioning=bytes(receiver.payload()))


async def denoise(
    endpoint: Denoiser,
    start: denoiser_pb2.DenoiseStart,
    *,
    conditioning: bytes,
    state: bytes | None,
    timeout: float,
) -> AsyncGenerator[DenoiseItem, None]:
    """Run the steps that `start` asks for; ends with a result. Closing the iterator stops the device."""

    def requests() -> Iterator[denoiser_pb2.DenoiseRequest]:
        yield denoiser_pb2.DenoiseRequest(start=start)
        for chunk in bundles.chunks(tensors_pb2.BUNDLE_KIND_CONDITIONING, conditioning):
            yield denoiser_pb2.DenoiseRequest(chunk=chunk)
        if state is not None:
            for chunk in bundles.chunks(tensors_pb2.BUNDLE_KIND_SOLVER_STATE, state):
                yield denoiser_pb2.DenoiseRequest(chunk=chunk)

    ended = False
    announced: denoiser_pb2.DenoiseBundle | None = None
    receiver: bundles.BundleReceiver | None = None
    async for response in _responses(DenoiserServiceStub(endpoint.channel).Denoise(requests(), timeout=timeout)):
        match response.WhichOneof("message"):
            case "accepted":
                yield response.accepted
            case "step":
                yield response.step
            case "preview":
                yield response.preview
            case "bundle":
                announced = response.bundle
                receiver = bundles.BundleReceiver(announced.header.kind, MAX_BUNDLE_BYTES)
            case "chunk":
                if announced is None or receiver is None:
                    raise DataLoss("The denoiser sent a chunk of no bundle.", reason="STREAM_INVALID")
                if receiver.feed(response.chunk):
                    yield SolverBundle(
                        kind=announced.header.kind,
                        reason=announced.reason,
                        next_step=announced.next_step,
                        payload=bytes(receiver.payload()),
                    )
                    announced = receiver = None
            case "result":
                ended = True
                yield response.result
    if not ended:
        raise DataLoss("The denoiser's stream ended early.", reason="STREAM_TRUNCATED")


async def plan_render(
    endpoint: Postprocessor, start: postprocess_pb2.RenderStart, *, timeout: float
) -> postprocess_pb2.RenderAccepted:
    """What `render` would accept. Raises the postprocessor's error."""
    call = PostprocessServiceStub(endpoint.channel).PlanRender(
        postprocess_pb2.PlanRenderRequest(start=start), timeout=timeout
    )
    try:
        return (await call).accepted
    except grpc.aio.AioRpcError as failed:
        raise from_rpc_error(failed) from None


async def render(
    endpoint: Postprocessor, start: postprocess_pb2.RenderStart, *, latents: bytes, timeout: float
) -> AsyncGenerator[RenderItem, None]:
    """Turn latents into a clip; ends with a result. Closing the iterator stops the device."""

    def requests() -> Iterator[postprocess_pb2.RenderRequest]:
        yield postprocess_pb2.RenderRequest(start=start)
        for chunk in bundles.chunks(tensors_pb2.BUNDLE_KIND_LATENTS, latents):
            yield postprocess_pb2.RenderRequest(chunk=chunk)

    ended = False
    async for response in _responses(PostprocessServiceStub(endpoint.channel).Render(requests(), timeout=timeout)):
        match response.WhichOneof("message"):
            case "accepted":
                yield response.accepted
            case "progress":
                yield response.progress
            case "fragment":
                yield response.fragment
            case "artifact":
                yield response.artifact
            case "output":
                yield response.output
            case "result":
                ended = True
                yield response.result
    if not ended:
        raise DataLoss("The postprocessor's stream ended early.", reason="STREAM_TRUNCATED")


async def render_frames(
    endpoint: Postprocessor, wanted: postprocess_pb2.FrameRange, clip: AsyncIterator[bytes], *, timeout: float
) -> AsyncGenerator[postprocess_pb2.FramePart, None]:
    """Frames of a clip as pictures. Raises the postprocessor's error."""

    async def requests() -> AsyncIterator[postprocess_pb2.RenderFramesRequest]:
        yield postprocess_pb2.RenderFramesRequest(start=wanted)
        async for data in clip:
            yield postprocess_pb2.RenderFramesRequest(data=data)

    call = PostprocessServiceStub(endpoint.channel).RenderFrames(requests(), timeout=timeout)
    async for response in _responses(call):
        yield response.frame


def holds(expert: sampling_pb2.Expert.ValueType, described: denoiser_pb2.DescribeDenoiserResponse) -> bool:
    """Whether a denoiser holds an expert."""
    return expert in described.experts


async def _responses(call: Any) -> AsyncGenerator[Any, None]:
    """The responses of a call, which is cancelled when the reader goes away. Raises the suite's errors."""
    with scoped(call):
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as failed:
            raise from_rpc_error(failed) from None
