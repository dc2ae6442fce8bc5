"""The denoiser as a gRPC service."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import torch

from rushes.v1 import denoiser_pb2, denoiser_pb2_grpc
from services.chassis.errors import FailedPrecondition, Unavailable
from services.chassis.incoming import Context
from services.chassis.lifecycle import Mounted
from services.chassis.logs import logger
from services.denoiser.acceleration import accelerate, loading_device
from services.denoiser.adapter_shelf import AdapterShelf
from services.denoiser.config import DenoiserConfig
from services.denoiser.gauges import watch
from services.denoiser.intake import Requests, footprint, read_start, read_work
from services.denoiser.inventory import memory_message, residency_message, sharing_message
from services.denoiser.outbox import Outbox
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import PrefixCache
from services.denoiser.preview_decoder import choose_developer
from services.denoiser.session import Session, Studio
from services.denoiser.spans import Spans
from services.denoiser.step_scheduler import StepScheduler
from services.denoiser.turnstile import Turnstile
from services.denoiser.warm_up import choose_guidance_batch, choose_sharing, default_shape, measure_memory, warm_up
from services.denoiser.wire import acceleration_message, accepted_message, description, messages
from services.model.device import DeviceThread, choose_device, choose_dtype
from services.model.folder import ModelFolder


class DenoiserService(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Runs ranges of solver steps for callers that hold a slot."""

    def __init__(self, studio: Studio, turnstile: Turnstile) -> None:
        self._studio = studio
        self._turnstile = turnstile

    async def Denoise(  # noqa: N802  (the name in the proto)
        self, request_iterator: Requests, _context: Context
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        """See `denoiser.proto`. The slot is free again only when the device has let go of the run."""
        if self._studio.draining.is_set():
            raise Unavailable("This denoiser is shutting down.", reason="DRAINING", retry_after_seconds=1)
        spans = Spans()
        start = await read_start(request_iterator)
        async with self._turnstile.seat(start.priority, footprint(start, self._studio)) as seat:
            with spans.measure("denoise.receive"):
                work = await read_work(start, request_iterator, self._studio)
            yield accepted_message(work.plan)
            outbox = Outbox()
            run = asyncio.create_task(Session(self._studio, seat, work, outbox, spans).run())
            try:
                async with aclosing(outbox.items()) as items:
                    async for item in items:
                        for message in messages(item, work.plan):
                            yield message
                await run
            finally:
                run.cancel()
                await asyncio.wait([run])

    async def DescribeDenoiser(  # noqa: N802  (the name in the proto)
        self, _request: denoiser_pb2.DescribeDenoiserRequest, _context: Context
    ) -> denoiser_pb2.DescribeDenoiserResponse:
        """See `denoiser.proto`."""
        described = description(
            self._studio.pool,
            self._turnstile.capacity,
            acceleration_message(self._studio.guidance_batch, self._studio.acceleration, self._studio.projection),
        )
        described.memory.CopyFrom(memory_message(self._studio.memory, *self._turnstile.memory))
        described.residency.CopyFrom(residency_message(self._studio.pool))
        described.step_sharing.CopyFrom(sharing_message(self._studio.sharing))
        return described


@asynccontextmanager
async def open_denoiser(config: DenoiserConfig, draining: asyncio.Event) -> AsyncIterator[Sequence[Mounted]]:
    """Load the experts and serve them for the block.

    Raises `ModelRefused` for a folder that must not be served, and `FailedPrecondition` for a model that differs from
    the reference under `strict_reference`.
    """
    device = choose_device(config.device)
    async with DeviceThread.open("denoiser-device", config.threads) as thread:
        if device.type == "cuda":
            # A thread's own: kernels of other libraries, events and streams go to the current device.
            await thread.run(torch.cuda.set_device, device)
        folder = ModelFolder(config.model)
        pool = await thread.run(
            ExpertPool.load, folder, config.experts, choose_dtype(config.dtype, device), loading_device(config, device)
        )
        pool, acceleration = await thread.run(accelerate, pool, config, device)
        _report_differences(pool, strict=config.strict_reference)
        shapes = config.measured_shapes(default_shape(pool.manifest))
        guidance_batch = await thread.run(choose_guidance_batch, pool, config.guidance_batch)
        if config.warm_up:
            await thread.run(warm_up, pool, shapes if config.shapes else (), guidance_batch)
        sharing = await thread.run(choose_sharing, pool, shapes, config.step_sharing, config.step_sharers)
        # Before memory is measured: what decodes previews takes its share.
        projection = await thread.run(choose_developer, folder, pool, config.preview_decoder)
        shelf = AdapterShelf(folder, config.adapter_cache_bytes)
        memory, available = await thread.run(
            measure_memory,
            pool,
            shapes,
            guidance_batch,
            limit=config.memory_bytes,
            reserve=shelf.reserve,
            folder=config.cache,
        )
        studio = Studio(
            pool=pool,
            thread=thread,
            shelf=shelf,
            projection=projection,
            guidance_batch=guidance_batch,
            acceleration=acceleration,
            prefixes=PrefixCache(config.prefix_cache_bytes),
            draining=draining,
            memory=memory,
            sharing=sharing,
        )
        scheduler = StepScheduler(
            config.slots,
            lambda kind: sharing.most(kind[0]),  # type: ignore[index]  # `Session._wish`
            None if pool.residence is None else config.swap_seconds,
            available,
        )
        turnstile = Turnstile(scheduler, config.retry_after_seconds)
        watch(turnstile, pool)
        servicer = DenoiserService(studio, turnstile)
        yield [
            Mounted(
                add_to_server=denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server,
                servicer=servicer,
                full_name="rushes.v1.DenoiserService",
            )
        ]


def _report_differences(pool: ExpertPool, *, strict: bool) -> None:
    for each in pool.differences:
        logger(__name__).info("differs_from_reference", field=each.field, reference=each.reference, actual=each.actual)
    if strict and pool.differences:
        first = pool.differences[0]
        raise FailedPrecondition(
            f"{first.field} is {first.actual}, not the reference's {first.reference}.", reason="NOT_THE_REFERENCE"
        )
