"""A caller of the denoiser, as plain as the gateway is."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from rushes.v1 import denoiser_pb2, denoiser_pb2_grpc, sampling_pb2, tensors_pb2
from services.chassis.bundles import Bundle, BundleReceiver, chunks, pack, unpack
from services.model.bundles import to_bundle, to_tensors

TEXT_DIM = 32
STEPS = 8


def conditioning(seed: int = 5, **tensors: torch.Tensor) -> bytes:
    """A packed conditioning bundle of random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "prompt": torch.randn(5, TEXT_DIM, generator=generator),
        "negative_prompt": torch.randn(2, TEXT_DIM, generator=generator),
    }
    return pack(to_bundle({**drawn, **tensors}, {}))


def start(text: bytes, state: bytes = b"", **fields: Any) -> denoiser_pb2.DenoiseStart:
    """A start message for a small clip; `fields` replace its own, `sampling` is a dict."""
    sampling = {"steps": STEPS, **fields.pop("sampling", {})}
    shape = {"width": 64, "height": 64, "num_frames": 9, **fields.pop("shape", {})}
    return denoiser_pb2.DenoiseStart(
        **{
            "shape": sampling_pb2.VideoShape(**shape),
            "sampling": sampling_pb2.SamplingSettings(**sampling),
            "seed": 7,
            "conditioning_size": len(text),
            "state_size": len(state),
            **fields,
        }
    )


def requests(
    first: denoiser_pb2.DenoiseStart, text: bytes, state: bytes = b""
) -> Iterator[denoiser_pb2.DenoiseRequest]:
    """The whole stream of a call."""
    yield denoiser_pb2.DenoiseRequest(start=first)
    for kind, payload in ((tensors_pb2.BUNDLE_KIND_CONDITIONING, text), (tensors_pb2.BUNDLE_KIND_SOLVER_STATE, state)):
        for chunk in chunks(kind, payload):
            yield denoiser_pb2.DenoiseRequest(chunk=chunk)


@dataclass(frozen=True, kw_only=True)
class Received:
    """A bundle as announced and as put together."""

    announced: denoiser_pb2.DenoiseBundle
    payload: bytes

    @property
    def bundle(self) -> Bundle:
        return unpack(self.payload)


@dataclass(kw_only=True)
class Outcome:
    """Everything a call answered, in order of kind."""

    accepted: denoiser_pb2.DenoiseAccepted | None = None
    steps: list[denoiser_pb2.StepProgress] = field(default_factory=list)
    previews: list[denoiser_pb2.Preview] = field(default_factory=list)
    bundles: list[Received] = field(default_factory=list)
    result: denoiser_pb2.DenoiseResult | None = None
    order: list[str] = field(default_factory=list)

    @property
    def latents(self) -> torch.Tensor:
        return to_tensors(self.bundles[-1].bundle, "cpu")["latents"]

    @property
    def state(self) -> bytes:
        return self.bundles[-1].payload


class Caller:
    """Calls one denoiser."""

    def __init__(self, channel: Any, address: str = "", draining: asyncio.Event | None = None) -> None:
        self.address = address
        self.stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        self.draining = draining

    async def denoise(
        self, *, text: bytes | None = None, state: bytes = b"", timeout: float | None = None, **fields: Any
    ) -> Outcome:
        """One whole call."""
        text = conditioning() if text is None else text
        return await collect(self.stub.Denoise(requests(start(text, state, **fields), text, state), timeout=timeout))

    async def describe(self) -> denoiser_pb2.DescribeDenoiserResponse:
        """The description of the service."""
        response: denoiser_pb2.DescribeDenoiserResponse = await self.stub.DescribeDenoiser(
            denoiser_pb2.DescribeDenoiserRequest()
        )
        return response


async def collect(call: AsyncIterator[denoiser_pb2.DenoiseResponse]) -> Outcome:
    """Everything that `call` answers."""
    outcome = Outcome()
    announced: denoiser_pb2.DenoiseBundle | None = None
    receiver: BundleReceiver | None = None
    async for response in call:
        kind = response.WhichOneof("message")
        outcome.order.append(str(kind))
        match kind:
            case "accepted":
                outcome.accepted = response.accepted
            case "step":
                outcome.steps.append(response.step)
            case "preview":
                outcome.previews.append(response.preview)
            case "bundle":
                announced = response.bundle
                receiver = BundleReceiver(announced.header.kind, announced.header.total_size)
            case "chunk":
                assert receiver is not None
                assert announced is not None
                if receiver.feed(response.chunk):
                    outcome.bundles.append(Received(announced=announced, payload=bytes(receiver.payload())))
            case "result":
                outcome.result = response.result
    return outcome
