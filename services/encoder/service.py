"""The encoder as a gRPC service."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch

from rushes.v1 import encoder_pb2, encoder_pb2_grpc, latency_pb2, tensors_pb2
from services.chassis.bundles import chunks, pack
from services.chassis.errors import InvalidRequest
from services.chassis.incoming import Context
from services.chassis.lifecycle import Mounted
from services.chassis.logs import logger
from services.chassis.slots import Slots
from services.chassis.telemetry import meter, tracer
from services.encoder.config import EncoderConfig
from services.encoder.text import clean
from services.encoder.text_encoder import EncodedText, TextEncoder
from services.model.bundles import to_bundle
from services.model.device import DeviceThread, choose_device, choose_dtype
from services.model.folder import ModelFolder

_KIND = tensors_pb2.BUNDLE_KIND_CONDITIONING


class EncoderService(encoder_pb2_grpc.EncoderServiceServicer):
    """Embeds texts for callers that hold a slot."""

    def __init__(self, *, model: str, encoder: TextEncoder, thread: DeviceThread, slots: Slots) -> None:
        self._model = model
        self._encoder = encoder
        self._thread = thread
        self._slots = slots
        empty = to_bundle({"prompt": torch.empty(0, dtype=encoder.dtype)}, {})
        self._dtype = empty.tensors["prompt"].dtype
        self._lookups = meter().create_counter("rushes.encoder.lookups", description="texts looked up in the cache")

    async def Encode(  # noqa: N802  (the name in the proto)
        self, request: encoder_pb2.EncodeRequest, _context: Context
    ) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        """See `encoder.proto`."""
        received = time.monotonic()
        if request.model not in ("", self._model):
            raise InvalidRequest.of("model", f"must be {self._model}, which is loaded, or empty")
        if not clean(request.prompt):
            raise InvalidRequest.of("prompt", "must have something left once entities and whitespace are resolved")
        texts = [request.prompt, *([request.negative_prompt] if request.HasField("negative_prompt") else [])]
        async with self._slots.hold():
            began = time.monotonic()
            with tracer().start_as_current_span("encode.text"):
                encoded = await self._thread.run(self._encoder.encode, texts)
            ended = time.monotonic()
        for text in encoded:
            self._lookups.add(1, {"result": "hit" if text.cached else "miss"})
        names = ("prompt", "negative_prompt")
        embeddings = {name: text.embedding for name, text in zip(names, encoded, strict=False)}
        payload = pack(to_bundle(embeddings, {"fingerprint": self._encoder.fingerprint}))
        summary = encoder_pb2.EncodeSummary(
            prompt=_summary(encoded[0]),
            fingerprint=self._encoder.fingerprint,
            seconds=ended - began,
            bundle=tensors_pb2.BundleHeader(kind=_KIND, total_size=len(payload)),
            spans=[
                latency_pb2.Span(
                    name="encode.text",
                    stage="encoder",
                    start_seconds=began - received,
                    duration_seconds=ended - began,
                    attributes={name: str(text.tokens) for name, text in zip(names, encoded, strict=False)},
                )
            ],
        )
        if len(encoded) > 1:
            summary.negative_prompt.CopyFrom(_summary(encoded[1]))
        yield encoder_pb2.EncodeResponse(summary=summary)
        for chunk in chunks(_KIND, payload):
            yield encoder_pb2.EncodeResponse(chunk=chunk)

    async def DescribeEncoder(  # noqa: N802  (the name in the proto)
        self, _request: encoder_pb2.DescribeEncoderRequest, _context: Context
    ) -> encoder_pb2.DescribeEncoderResponse:
        """See `encoder.proto`."""
        return encoder_pb2.DescribeEncoderResponse(
            model=self._model,
            fingerprint=self._encoder.fingerprint,
            max_tokens=self._encoder.max_tokens,
            embedding_size=self._encoder.embedding_size,
            dtype=self._dtype,
            device=str(self._encoder.device),
            slots=self._slots.capacity,
        )


@asynccontextmanager
async def open_encoder(config: EncoderConfig, _draining: asyncio.Event) -> AsyncIterator[Sequence[Mounted]]:
    """Load the text encoder and serve it for the block. Raises `ModelRefused` for a folder that must not be served."""
    device = choose_device(config.device)
    async with DeviceThread.open("encoder-device", config.threads) as thread:
        folder = ModelFolder(config.model)
        encoder = await thread.run(
            TextEncoder.load,
            folder,
            dtype=choose_dtype(config.dtype, device),
            device=device,
            cache_bytes=config.cache_mebibytes * 2**20,
        )
        logger(__name__).info("loaded", model=folder.manifest.id, fingerprint=encoder.fingerprint, device=str(device))
        service = EncoderService(
            model=folder.manifest.id,
            encoder=encoder,
            thread=thread,
            slots=Slots(config.slots, config.retry_after_seconds),
        )
        yield [
            Mounted(
                add_to_server=encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
                servicer=service,
                full_name="rushes.v1.EncoderService",
            )
        ]


def _summary(text: EncodedText) -> encoder_pb2.TextSummary:
    return encoder_pb2.TextSummary(
        tokens=text.tokens,
        truncated=text.total_tokens > text.tokens,
        total_tokens=text.total_tokens,
        cached=text.cached,
    )
