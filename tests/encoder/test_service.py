import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import torch

from rushes.v1 import encoder_pb2, encoder_pb2_grpc, tensors_pb2
from services.chassis.bundles import BundleReceiver, unpack
from services.chassis.channels import open_channel
from services.chassis.errors import Exhausted, InvalidRequest, from_rpc_error
from services.chassis.lifecycle import Mounted, run_server
from services.chassis.slots import Slots
from services.encoder.config import EncoderConfig
from services.encoder.service import EncoderService
from services.encoder.text_encoder import TextEncoder
from services.model.bundles import to_tensors
from services.model.device import DeviceThread
from services.model.folder import ModelFolder

Stub = encoder_pb2_grpc.EncoderServiceStub
OpenStub = Callable[..., AbstractAsyncContextManager[Stub]]
PROMPT = "a red circle moves left"


async def _encode(stub: Stub, **fields: str) -> tuple[encoder_pb2.EncodeSummary, dict[str, torch.Tensor]]:
    receiver = BundleReceiver(tensors_pb2.BUNDLE_KIND_CONDITIONING, 2**20)
    summary = encoder_pb2.EncodeSummary()
    async for response in stub.Encode(encoder_pb2.EncodeRequest(**fields)):
        if response.HasField("summary"):
            summary = response.summary
        else:
            receiver.feed(response.chunk)
    payload = receiver.payload()
    assert summary.bundle.total_size == len(payload)
    return summary, to_tensors(unpack(payload), "cpu")


async def _refused(stub: Stub, **fields: str) -> InvalidRequest:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _encode(stub, **fields)
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidRequest)
    return error


async def test_prompt_and_negative_prompt_come_back_as_one_bundle(encoder: OpenStub, model: Path) -> None:
    own = TextEncoder.load(ModelFolder(model), dtype=torch.float32, device=torch.device("cpu"), cache_bytes=0)
    expected = own.encode([PROMPT, "blue"])

    async with encoder() as stub:
        summary, tensors = await _encode(stub, prompt=PROMPT, negative_prompt="blue")

    assert torch.equal(tensors["prompt"], expected[0].embedding)
    assert torch.equal(tensors["negative_prompt"], expected[1].embedding)
    assert summary.prompt.tokens == len(tensors["prompt"])
    assert summary.negative_prompt.tokens == len(tensors["negative_prompt"])
    assert not summary.prompt.truncated
    assert summary.fingerprint == own.fingerprint
    assert summary.seconds > 0
    assert [(span.name, span.stage) for span in summary.spans] == [("encode.text", "encoder")]


async def test_without_a_negative_prompt_there_is_no_negative_embedding(encoder: OpenStub) -> None:
    async with encoder() as stub:
        summary, tensors = await _encode(stub, prompt=PROMPT)

    assert set(tensors) == {"prompt"}
    assert not summary.HasField("negative_prompt")


async def test_an_empty_negative_prompt_is_a_text(encoder: OpenStub) -> None:
    async with encoder() as stub:
        summary, tensors = await _encode(stub, prompt=PROMPT, negative_prompt="")

    assert len(tensors["negative_prompt"]) == summary.negative_prompt.tokens == 1


async def test_the_caller_learns_that_a_prompt_was_truncated(encoder: OpenStub) -> None:
    async with encoder() as stub:
        summary, tensors = await _encode(stub, prompt="many words " * 20)

    assert summary.prompt.truncated
    assert summary.prompt.tokens == len(tensors["prompt"]) == 16
    assert summary.prompt.total_tokens > 16


async def test_the_second_time_a_prompt_comes_from_the_cache(encoder: OpenStub) -> None:
    async with encoder() as stub:
        first, before = await _encode(stub, prompt=PROMPT)
        second, after = await _encode(stub, prompt=PROMPT)

    assert (first.prompt.cached, second.prompt.cached) == (False, True)
    assert torch.equal(before["prompt"], after["prompt"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n "}, "prompt"),
        ({"prompt": "&nbsp; &nbsp;"}, "prompt"),
        ({"prompt": "x" * 8001}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "a\x1bb"}, "prompt"),
        ({"prompt": "a", "negative_prompt": "b\x07"}, "negative_prompt"),
        ({"prompt": "a", "negative_prompt": "x" * 8001}, "negative_prompt"),
        ({"prompt": "a", "model": "another-model"}, "model"),
        ({"prompt": "a", "model": "../../etc"}, "model"),
    ],
)
async def test_bad_input_is_refused_with_its_field_and_the_service_goes_on(
    encoder: OpenStub, fields: dict[str, str], field: str
) -> None:
    async with encoder(slots=1) as stub:
        refused = await _refused(stub, **fields)
        _, tensors = await _encode(stub, prompt=PROMPT)

    assert [violation.field for violation in refused.violations] == [field]
    assert tensors["prompt"].isfinite().all()


@asynccontextmanager
async def _busy_encoder(model: Path) -> AsyncIterator[tuple[Stub, Slots, threading.Event]]:
    """An encoder with one slot, whose device is held until the event is set."""
    slots, release = Slots(1, retry_after_seconds=3), threading.Event()

    @asynccontextmanager
    async def open_service(_draining: asyncio.Event) -> AsyncIterator[list[Mounted]]:
        text_encoder = TextEncoder.load(
            ModelFolder(model), dtype=torch.float32, device=torch.device("cpu"), cache_bytes=0
        )
        async with DeviceThread.open() as thread:
            service = EncoderService(model="rushes-untrained", encoder=text_encoder, thread=thread, slots=slots)
            held = asyncio.create_task(thread.run(release.wait))
            add = encoder_pb2_grpc.add_EncoderServiceServicer_to_server
            yield [Mounted(add_to_server=add, servicer=service, full_name="rushes.v1.EncoderService")]
            release.set()
            await held

    config = EncoderConfig(model=model, device="cpu")
    async with (
        run_server(config, "encoder", open_service) as running,
        open_channel(running.address) as channel,
    ):
        yield encoder_pb2_grpc.EncoderServiceStub(channel), slots, release


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for sets no event)
        await asyncio.sleep(0.005)


async def test_a_call_without_a_free_slot_is_refused_at_once(model: Path) -> None:
    async with _busy_encoder(model) as (stub, slots, release):
        first = asyncio.create_task(_encode(stub, prompt=PROMPT))
        await _until(lambda: slots.in_use == 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _encode(stub, prompt=PROMPT)
        release.set()
        summary, _ = await first

    error = from_rpc_error(refused.value)
    assert isinstance(error, Exhausted)
    assert error.retry_after_seconds == 3
    assert summary.prompt.tokens > 0


async def test_a_cancelled_call_gives_its_slot_back(model: Path) -> None:
    async with _busy_encoder(model) as (stub, slots, release):
        call = stub.Encode(encoder_pb2.EncodeRequest(prompt=PROMPT))
        await _until(lambda: slots.in_use == 1)
        call.cancel()
        await _until(lambda: slots.in_use == 0)
        release.set()

        summary, _ = await _encode(stub, prompt=PROMPT)

    assert summary.prompt.tokens > 0


async def test_the_encoder_describes_itself(encoder: OpenStub) -> None:
    async with encoder(slots=5) as stub:
        described = await stub.DescribeEncoder(encoder_pb2.DescribeEncoderRequest())
        summary, tensors = await _encode(stub, prompt=PROMPT)

    assert (described.model, described.dtype, described.device) == ("rushes-untrained", "F32", "cpu")
    assert (described.max_tokens, described.slots) == (16, 5)
    assert described.embedding_size == tensors["prompt"].shape[1]
    assert described.fingerprint == summary.fingerprint
