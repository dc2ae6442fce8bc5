"""Postprocess as a gRPC service."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import cv2
from diffusers import AutoencoderKLWan

from rushes.v1 import postprocess_pb2, postprocess_pb2_grpc
from services.chassis.errors import InvalidRequest, Unavailable
from services.chassis.incoming import Context
from services.chassis.lifecycle import Mounted
from services.chassis.logs import logger
from services.chassis.slots import Slots
from services.model.device import DeviceThread, choose_device, choose_dtype
from services.model.folder import ModelFolder
from services.model.weights import load_module
from services.postprocess.chain import StageFailed, Work
from services.postprocess.codecs import Codec, present_encoders
from services.postprocess.config import PostprocessConfig
from services.postprocess.decode import WanDecoder
from services.postprocess.decoder_choice import choose_decoder
from services.postprocess.fragments import Fragment
from services.postprocess.frame_reading import render_frames
from services.postprocess.inspection import QualityRefused
from services.postprocess.intake import RenderWork, Requests, latents_shape, make_plan, read_work, tile_edge
from services.postprocess.mp4 import EncoderRefused
from services.postprocess.orders import CODECS
from services.postprocess.outputs import OutputPart
from services.postprocess.plan import RenderPlan
from services.postprocess.provenance import Maker
from services.postprocess.refusals import quality_refusal, signing_failure, stage_failure
from services.postprocess.rendering import Finished, Rendering
from services.postprocess.scaler_choice import ScalerChoice, choose_scaler
from services.postprocess.signing import Signer, SigningFailed, open_signer
from services.postprocess.upscale import Upscalers, load_upscalers
from services.postprocess.wire import (
    accepted_message,
    artifact_message,
    fragment_messages,
    network_messages,
    output_message,
    progress_message,
    result_message,
    scaler_message,
    signing_message,
)

Responses = AsyncGenerator[postprocess_pb2.RenderResponse, None]


class PostprocessService(postprocess_pb2_grpc.PostprocessServiceServicer):
    """Renders clips for callers that hold a slot."""

    def __init__(
        self,
        *,
        folder: ModelFolder,
        decoder: WanDecoder,
        fingerprint: str,
        thread: DeviceThread,
        slots: Slots,
        encoder_threads: int,
        maker: Maker,
        signer: Signer | None,
        encoders: Mapping[Codec, str],
        upscalers: Upscalers,
        scaling: ScalerChoice,
        draining: asyncio.Event,
    ) -> None:
        self._manifest = folder.manifest
        self._decoder = decoder
        self._fingerprint = fingerprint
        self._thread = thread
        self._slots = slots
        self._encoder_threads = encoder_threads
        self._maker = maker
        self._signer = signer
        self._encoders = encoders
        self._upscalers = upscalers
        self._scaling = scaling
        self._draining = draining
        self._frame_slots = Slots(slots.capacity, slots.retry_after_seconds)

    async def Render(self, request_iterator: Requests, _context: Context) -> Responses:  # noqa: N802  (the name in the proto)
        """See `postprocess.proto`. The slot is free again only when device and encoder have let go of the clip."""
        origin = time.monotonic()
        if self._draining.is_set():
            raise Unavailable("This service is shutting down.", reason="DRAINING", retry_after_seconds=1)
        async with self._slots.hold():
            work = await read_work(request_iterator, self._decoder, self._manifest, self._encoders, self._upscalers)
            receiving = Work(stage="receive", start=origin, duration=time.monotonic() - origin, frames=0)
            async with aclosing(self._answers(work, receiving, origin)) as answers:
                async for answer in answers:
                    yield answer

    async def _answers(self, work: RenderWork, receiving: Work, origin: float) -> Responses:
        plan = work.plan
        rendering = await asyncio.to_thread(self._rendering, plan)
        yield accepted_message(plan, rendering.content_type, work.tile_edge)
        decoded, offset = 0, 0
        try:
            async with aclosing(rendering.events(self._thread, work.latents)) as events:
                async for event in events:
                    match event:
                        case Work():
                            decoded += event.frames
                            yield progress_message(decoded, plan.num_frames, event.duration)
                        case Fragment():
                            for message in fragment_messages(event, offset):
                                yield message
                            offset += len(event.data)
                        case OutputPart():
                            yield output_message(event)
                        case Finished():
                            yield result_message(event, plan, [receiving], origin)
                        case _:
                            yield artifact_message(event)
        except StageFailed as failed:
            logger(__name__).exception("stage_failed", stage=failed.stage)
            raise stage_failure(failed, plan) from failed
        except SigningFailed as failed:
            logger(__name__).exception("signing_failed")
            raise signing_failure() from failed
        except QualityRefused as refused:
            raise quality_refusal(refused.finding) from refused

    async def PlanRender(  # noqa: N802  (the name in the proto)
        self, request: postprocess_pb2.PlanRenderRequest, _context: Context
    ) -> postprocess_pb2.PlanRenderResponse:
        """See `postprocess.proto`."""
        plan = await asyncio.to_thread(make_plan, request.start, self._manifest, self._encoders, self._upscalers)
        edge = tile_edge(latents_shape(plan, self._decoder), self._decoder)
        rendering = await asyncio.to_thread(self._rendering, plan)
        return postprocess_pb2.PlanRenderResponse(
            accepted=accepted_message(plan, rendering.content_type, edge).accepted
        )

    def _rendering(self, plan: RenderPlan) -> Rendering:
        """The opened chain of a plan. Raises `InvalidRequest` for a clip that its encoder cannot encode."""
        try:
            return Rendering(
                plan,
                self._decoder,
                encoder_threads=self._encoder_threads,
                upscalers=self._upscalers,
                scaler=self._scaling.scaler,
                maker=self._maker,
                signer=self._signer,
            )
        except EncoderRefused as refused:
            raise InvalidRequest.of("start.video.codec", str(refused)) from refused

    async def RenderFrames(  # noqa: N802  (the name in the proto)
        self, request_iterator: AsyncIterator[postprocess_pb2.RenderFramesRequest], _context: Context
    ) -> AsyncGenerator[postprocess_pb2.RenderFramesResponse, None]:
        """See `postprocess.proto`. Single frames have slots of their own: they need no device."""
        async with self._frame_slots.hold(), aclosing(render_frames(request_iterator)) as answers:
            async for answer in answers:
                yield answer

    async def DescribePostprocess(  # noqa: N802  (the name in the proto)
        self, _request: postprocess_pb2.DescribePostprocessRequest, _context: Context
    ) -> postprocess_pb2.DescribePostprocessResponse:
        """See `postprocess.proto`."""
        return postprocess_pb2.DescribePostprocessResponse(
            model=self._manifest.id,
            fingerprint=self._fingerprint,
            dtype=str(self._decoder.dtype).removeprefix("torch."),
            device=str(self._decoder.device),
            slots=self._slots.capacity,
            codecs=[
                postprocess_pb2.VideoCodec.ValueType(number)
                for number, codec in CODECS.items()
                if codec in self._encoders
            ],
            encoders=self._encoders.values(),
            upscalers=self._upscalers.ids,
            upscaling_networks=network_messages(self._upscalers),
            signing=signing_message(self._signer.credentials) if self._signer is not None else None,
            frame_scaler=scaler_message(self._scaling),
        )


@asynccontextmanager
async def open_postprocess(config: PostprocessConfig, draining: asyncio.Event) -> AsyncIterator[Sequence[Mounted]]:
    """Load the decoder and serve it for the block.

    Raises `ModelRefused` for a folder that must not be served, `CredentialsRefused` for a certificate that cannot sign.
    """
    # The result of an optical flow depends on the number of threads that share it.
    cv2.setNumThreads(1)
    signer = await asyncio.to_thread(open_signer, config)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    async with DeviceThread.open("postprocess-device", config.threads) as thread:
        folder = ModelFolder(config.model)
        vae = await thread.run(load_module, folder.component("vae"), AutoencoderKLWan, dtype, device)
        scaling = await thread.run(choose_scaler, config.frame_scaler, device)
        upscalers = await thread.run(
            load_upscalers,
            folder,
            device,
            threads=config.threads,
            runtime=config.upscaler_runtime,
            tile=config.upscaler_tile,
            margin=config.upscaler_margin,
        )
        # Last: what else is loaded takes its share of the memory.
        decoder = await thread.run(choose_decoder, vae, config)
        facts = f"{folder.fingerprint} vae {dtype} {decoder.tiling.facts} {scaling.scaler.name}"
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:16]
        logger(__name__).info("loaded", model=folder.manifest.id, fingerprint=fingerprint, device=str(device))
        service = PostprocessService(
            folder=folder,
            decoder=decoder,
            fingerprint=fingerprint,
            thread=thread,
            slots=Slots(config.slots, config.retry_after_seconds),
            encoder_threads=config.encoder_threads,
            maker=Maker(producer=config.content_producer, model=folder.manifest.id, fingerprint=folder.fingerprint),
            signer=signer,
            encoders=await asyncio.to_thread(present_encoders, hardware=config.hardware_encoder),
            upscalers=upscalers,
            scaling=scaling,
            draining=draining,
        )
        yield [
            Mounted(
                add_to_server=postprocess_pb2_grpc.add_PostprocessServiceServicer_to_server,
                servicer=service,
                full_name="rushes.v1.PostprocessService",
            )
        ]
