"""Calls of Render, as a client makes them."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import av
import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from rushes.v1 import postprocess_pb2, postprocess_pb2_grpc, sampling_pb2, tensors_pb2
from services.chassis.bundles import Bundle, Tensor, chunks, pack
from services.chassis.errors import (
    RushesError,
    from_rpc_error,
)
from services.chassis.lifecycle import Running
from services.postprocess.frames import Pixels

LATENTS = tensors_pb2.BUNDLE_KIND_LATENTS
CONDITIONING = tensors_pb2.BUNDLE_KIND_CONDITIONING
Requests = Iterable[postprocess_pb2.RenderRequest]


@dataclass
class Service:
    """A running service and a stub that calls it."""

    stub: postprocess_pb2_grpc.PostprocessServiceStub
    running: Running


def draw_latents(frames: int, *, width: int = 64, height: int = 48, seed: int = 0) -> torch.Tensor:
    """Random latents of a clip."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, (frames - 1) // 4 + 1, height // 8, width // 8, generator=generator)


def pack_latents(latents: torch.Tensor, *, name: str = "latents", dtype: str = "F32") -> bytes:
    """The bundle of latents, as bytes."""
    data = latents.contiguous().numpy().tobytes()
    return pack(Bundle(tensors={name: Tensor(dtype=dtype, shape=tuple(latents.shape), data=data)}))


def start_request(payload: bytes, **fields: object) -> postprocess_pb2.RenderRequest:
    """The first message, for a clip of 64x48 and 9 frames where `fields` say nothing else."""
    shape = sampling_pb2.VideoShape(width=64, height=48, num_frames=9)
    values = {"shape": shape, "latents_size": len(payload)} | fields
    return postprocess_pb2.RenderRequest(start=postprocess_pb2.RenderStart(**values))


def render_requests(latents: torch.Tensor, **fields: object) -> list[postprocess_pb2.RenderRequest]:
    """All messages of a call that renders `latents`."""
    payload = pack_latents(latents)
    shape = sampling_pb2.VideoShape(
        width=latents.shape[3] * 8, height=latents.shape[2] * 8, num_frames=(latents.shape[1] - 1) * 4 + 1
    )
    first = start_request(payload, **{"shape": shape, **fields})
    return [first, *(postprocess_pb2.RenderRequest(chunk=chunk) for chunk in chunks(LATENTS, payload))]


@dataclass
class Clip:
    """What one call answered."""

    accepted: postprocess_pb2.RenderAccepted = field(default_factory=postprocess_pb2.RenderAccepted)
    progress: list[postprocess_pb2.RenderProgress] = field(default_factory=list)
    fragments: list[postprocess_pb2.Fragment] = field(default_factory=list)
    artifacts: list[postprocess_pb2.Artifact] = field(default_factory=list)
    outputs: list[postprocess_pb2.OutputPart] = field(default_factory=list)
    result: postprocess_pb2.RenderResult = field(default_factory=postprocess_pb2.RenderResult)
    order: list[str] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(part.data for part in self.fragments)

    def files(self) -> dict[str, bytes]:
        """The files by name; each must have come whole, and be what its SHA-256 says."""
        files: dict[str, bytes] = {}
        for part in self.outputs:
            assert part.offset == len(files.get(part.name, b""))
            files[part.name] = files.get(part.name, b"") + part.data
            if part.sha256:
                assert hashlib.sha256(files[part.name]).hexdigest() == part.sha256
        assert {part.name for part in self.outputs if part.sha256} == set(files)
        return files

    def frames(self) -> Pixels:
        with av.open(io.BytesIO(self.data)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


async def render(service: Service, requests: Requests) -> Clip:
    """Call, and collect the answers."""
    clip = Clip()
    async for response in service.stub.Render(iter(requests)):
        kind = response.WhichOneof("message")
        value = getattr(response, kind)
        clip.order.append(kind)
        if kind in ("accepted", "result"):
            setattr(clip, kind, value)
        else:
            getattr(
                clip, {"fragment": "fragments", "artifact": "artifacts", "output": "outputs"}.get(kind, kind)
            ).append(value)
    return clip


async def refusal(service: Service, requests: Requests) -> RushesError:
    """Call, and expect a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await render(service, requests)
    return from_rpc_error(refused.value)


def png(width: int, height: int) -> bytes:
    """A red picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()
