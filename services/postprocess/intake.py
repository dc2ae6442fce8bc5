"""Reads the caller's stream into checked work, before anything touches the device."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch

from rushes.v1 import postprocess_pb2, tensors_pb2
from services.chassis.bundles import BundleReceiver, unpack
from services.chassis.errors import FailedPrecondition, InvalidRequest
from services.model.bundles import to_tensors
from services.model.manifest import Manifest
from services.postprocess.codecs import Codec
from services.postprocess.decode import WanDecoder
from services.postprocess.orders import plan_rendering
from services.postprocess.plan import RenderPlan
from services.postprocess.tiling import DoesNotFit
from services.postprocess.upscale import Upscalers

LATENTS = "latents"

_HEADER_BYTES = 64 * 1024

Requests = AsyncIterator[postprocess_pb2.RenderRequest]


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderWork:
    """A plan, the latents [C, T, h, w] in float32 on the host, and the edge in pixels of the tiles, 0 for none."""

    plan: RenderPlan
    latents: torch.Tensor
    tile_edge: int


async def read_work(
    requests: Requests,
    decoder: WanDecoder,
    manifest: Manifest,
    encoders: Mapping[Codec, str],
    upscalers: Upscalers,
) -> RenderWork:
    """The work that `requests` order.

    Raises `InvalidRequest` naming field and rule, `FailedPrecondition` for a clip that does not fit, `DataLoss` for a
    damaged chunk.
    """
    start = await _start(requests)
    plan = await asyncio.to_thread(make_plan, start, manifest, encoders, upscalers)
    shape = latents_shape(plan, decoder)
    edge = tile_edge(shape, decoder)
    limit = 4 * torch.Size(shape).numel() + _HEADER_BYTES
    if start.latents_size <= 0:
        raise InvalidRequest.of("start.latents_size", "must be greater than 0")
    if start.latents_size > limit:
        raise InvalidRequest.of("start.latents_size", f"must be at most {limit} for a clip of this shape")
    receiver = BundleReceiver(tensors_pb2.BUNDLE_KIND_LATENTS, start.latents_size)
    complete = False
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidRequest.of("chunk", "every message after the first must be a chunk of the latents")
        if complete:
            raise InvalidRequest.of("chunk", "must not follow a complete bundle")
        complete = receiver.feed(request.chunk)
    latents = await asyncio.to_thread(_latents, receiver.payload(), shape)
    return RenderWork(plan=plan, latents=latents, tile_edge=edge)


def make_plan(
    start: postprocess_pb2.RenderStart, manifest: Manifest, encoders: Mapping[Codec, str], upscalers: Upscalers
) -> RenderPlan:
    """What `start` asks for, with the model's defaults filled in. Raises `InvalidRequest`."""
    if start.model not in ("", manifest.id):
        raise InvalidRequest.of("start.model", f"must be {manifest.id}, which is loaded, or empty")
    limits, shape = manifest.limits, start.shape
    for name, value, limit in (
        ("width", shape.width, limits.max_width),
        ("height", shape.height, limits.max_height),
        ("num_frames", shape.num_frames, limits.max_frames),
    ):
        if value > limit:
            raise InvalidRequest.of(f"start.shape.{name}", f"must be at most {limit} for this model")
    fps = Fraction(start.fps or manifest.defaults.fps)
    return plan_rendering(start, fps=fps, encoders=encoders, upscalers=upscalers)


async def _start(requests: Requests) -> postprocess_pb2.RenderStart:
    async for request in requests:
        if request.HasField("start"):
            return request.start
        break
    raise InvalidRequest.of("start", "must be the first message")


def latents_shape(plan: RenderPlan, decoder: WanDecoder) -> tuple[int, int, int, int]:
    """[C, T, h, w] of the latents that `plan` is for. Raises `InvalidRequest`."""
    try:
        return decoder.latents_shape(width=plan.width, height=plan.height, num_frames=plan.num_frames)
    except ValueError as unfit:
        raise InvalidRequest.of("start.shape", str(unfit)) from unfit


def tile_edge(shape: tuple[int, int, int, int], decoder: WanDecoder) -> int:
    """Edge in pixels of the tiles of latents of `shape`, 0 for whole pictures. Raises `FailedPrecondition`."""
    try:
        return decoder.mosaic(*shape[2:]).edge
    except DoesNotFit as large:
        raise FailedPrecondition(
            f"Decoding a clip of this size needs {large.needed} bytes of device memory; {large.available} are there for"
            " it.",
            reason="DEVICE_MEMORY",
        ) from large


def _latents(payload: memoryview, shape: tuple[int, int, int, int]) -> torch.Tensor:
    bundle = unpack(payload)
    if set(bundle.tensors) != {LATENTS}:
        raise InvalidRequest.of("bundle", f"must hold one tensor, {LATENTS}")
    stated = bundle.tensors[LATENTS]
    if stated.dtype != "F32":
        raise InvalidRequest.of(f"bundle.{LATENTS}", f"must be F32, not {stated.dtype}")
    if stated.shape != shape:
        raise InvalidRequest.of(f"bundle.{LATENTS}", f"must have shape {list(shape)}, not {list(stated.shape)}")
    latents = to_tensors(bundle, "cpu")[LATENTS]
    if not bool(torch.isfinite(latents).all()):
        raise InvalidRequest.of(f"bundle.{LATENTS}", "must be finite")
    return latents
