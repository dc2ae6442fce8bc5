"""What is refused before the device works, by field and rule; the service stays healthy and the slot free."""

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch

from rushes.v1 import denoiser_pb2, tensors_pb2
from services.chassis.bundles import chunks, pack
from services.chassis.errors import DataLoss, FailedPrecondition, InvalidRequest, RushesError, from_rpc_error
from services.model.bundles import to_bundle
from tests.denoiser.caller import STEPS, Caller, collect, conditioning, requests, start
from tests.denoiser.conftest import Serve

TEXT = conditioning()


async def refusal(caller: Caller, stream: Iterator[denoiser_pb2.DenoiseRequest]) -> RushesError:
    """The error of a call, after which another must succeed."""
    evaluated: list[torch.nn.Module] = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, _i, _o: evaluated.append(module))
    with hook, pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(caller.stub.Denoise(stream))
    assert not evaluated
    assert len((await caller.denoise()).steps) == STEPS
    return from_rpc_error(refused.value)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("start.shape.width", {"shape": {"width": 100}}),
        ("start.shape.width", {"shape": {"width": 512}}),
        ("start.shape.height", {"shape": {"height": -16}}),
        ("start.shape.height", {"shape": {"height": 272}}),
        ("start.shape.num_frames", {"shape": {"num_frames": 8}}),
        ("start.shape.num_frames", {"shape": {"num_frames": 85}}),
        ("start.sampling.steps", {"sampling": {"steps": 0}}),
        (
            "start.sampling.guidance_timestep_min",
            {"sampling": {"guidance_timestep_min": 900.0, "guidance_timestep_max": 100.0}},
        ),
        ("start.sampling.steps", {"sampling": {"steps": 101}}),
        ("start.sampling.guidance_scale_high", {"sampling": {"guidance_scale_high": math.nan}}),
        ("start.sampling.guidance_scale_low", {"sampling": {"guidance_scale_low": math.inf}}),
        ("start.sampling.guidance_scale_low", {"sampling": {"guidance_scale_low": -1.0}}),
        ("start.sampling.flow_shift", {"sampling": {"flow_shift": 0.0}}),
        ("start.sampling.boundary_ratio", {"sampling": {"boundary_ratio": 1.5}}),
        ("start.sampling.solver", {"sampling": {"solver": 77}}),
        ("start.sampling.sigma_rule", {"sampling": {"sigma_rule": 77}}),
        ("start.seed", {"seed": -1}),
        ("start.model", {"model": "another-model"}),
        ("start.model", {"model": "../../etc/passwd"}),
        ("start.first_step", {"first_step": STEPS, "state_size": 8}),
        ("start.end_step", {"end_step": STEPS + 1}),
        ("start.end_step", {"first_step": 3, "end_step": 3, "state_size": 8}),
        ("start.state_size", {"first_step": 3}),
        ("start.state_size", {"first_step": 3, "state_size": 10**9}),
        ("start.conditioning_size", {"conditioning_size": 10**9}),
        ("start.conditioning_size", {"conditioning_size": 0}),
        ("start.previews.every_steps", {"previews": {"every_steps": -1}}),
        ("start.previews.every_steps", {"previews": {"every_steps": 10**6}}),
        ("start.previews.frames", {"previews": {"frames": 1000}}),
        ("start.previews.max_edge", {"previews": {"max_edge": 100_000}}),
        ("start.previews.max_edge", {"previews": {"max_edge": -1}}),
        ("start.previews.format", {"previews": {"format": "IMAGE_FORMAT_PNG"}}),
        ("start.checkpoints.every_seconds", {"checkpoints": {"every_seconds": math.nan}}),
        ("start.checkpoints.every_seconds", {"checkpoints": {"every_seconds": -1}}),
        ("start.checkpoints.every_steps", {"checkpoints": {"every_steps": -1}}),
        ("start.first_step", {"first_step": -1}),
        ("start.first_step", {"first_step": 10**9, "state_size": 8}),
        ("start.end_step", {"end_step": 0}),
        ("start.end_step", {"end_step": -5}),
        ("start.end_step", {"first_step": 5, "end_step": 4, "state_size": 8}),
        ("start.state_size", {"state_size": 8}),
        ("start.priority", {"priority": 101}),
        ("start.sampling.guidance_timestep_min", {"sampling": {"guidance_timestep_min": -1.0}}),
        ("start.sampling.guidance_timestep_max", {"sampling": {"guidance_timestep_max": 1000.5}}),
        ("start.sampling.guidance_timestep_max", {"sampling": {"guidance_timestep_max": math.nan}}),
        # Reversed against the default at the other end.
        (
            "start.sampling.guidance_timestep_min",
            {"sampling": {"guidance_timestep_max": -0.0, "guidance_timestep_min": 1}},
        ),
        ("start.sampling.step_cache", {"sampling": {"step_cache": 9}}),
        ("start.sampling.step_cache_threshold", {"sampling": {"step_cache_threshold": math.nan}}),
        ("start.adapters[0].id", {"adapters": [{"id": "unknown"}]}),
        ("start.adapters[0].weight_high", {"adapters": [{"id": "unknown", "weight_high": math.nan}]}),
        ("start.adapters[0].weight_low", {"adapters": [{"id": "unknown", "weight_low": -math.inf}]}),
        ("start.adapters[0].weight_low", {"adapters": [{"id": "unknown", "weight_low": 5.0}]}),
        ("start.adapters", {"adapters": [{"id": f"a{number}"} for number in range(9)]}),
    ],
)
async def test_a_wrong_setting_is_refused_by_name(caller: Caller, field: str, fields: dict[str, Any]) -> None:
    error = await refusal(caller, requests(start(TEXT, **fields), TEXT))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == field
    assert error.violations[0].rule


async def test_neighbours_of_refused_calls_are_unharmed(serve: Serve) -> None:
    async with serve(slots=4) as caller:
        alone = await caller.denoise(sampling={"steps": 40})
        neighbour = asyncio.create_task(caller.denoise(sampling={"steps": 40}))
        wrong: list[dict[str, Any]] = [
            {"adapters": [{"id": "unknown"}]},
            {"sampling": {"guidance_timestep_min": 900.0, "guidance_timestep_max": 100.0}},
            {"first_step": 3, "state_size": 8},
            {"end_step": 99},
            {"previews": {"frames": 1000}},
        ]
        for fields in wrong:
            with pytest.raises(grpc.aio.AioRpcError):
                await collect(caller.stub.Denoise(requests(start(TEXT, **fields), TEXT)))
        assert (await neighbour).bundles[-1].payload == alone.bundles[-1].payload


def conditioned(**tensors: torch.Tensor) -> Iterator[denoiser_pb2.DenoiseRequest]:
    text = pack(to_bundle(tensors, {}))
    return requests(start(text), text)


PROMPT, NEGATIVE = torch.randn(5, 32), torch.randn(2, 32)


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"negative_prompt": NEGATIVE}, "prompt is missing"),
        ({"prompt": PROMPT}, "negative_prompt is missing"),
        ({"prompt": PROMPT, "negative_prompt": NEGATIVE, "surprise": PROMPT}, "surprise"),
        ({"prompt": torch.randn(5, 31), "negative_prompt": NEGATIVE}, "shape"),
        ({"prompt": torch.randn(1, 5, 32), "negative_prompt": NEGATIVE}, "shape"),
        ({"prompt": torch.randn(17, 32), "negative_prompt": NEGATIVE}, "16 tokens"),
        ({"prompt": torch.randn(0, 32), "negative_prompt": NEGATIVE}, "tokens"),
        ({"prompt": PROMPT.to(torch.int32), "negative_prompt": NEGATIVE}, "float"),
        ({"prompt": PROMPT * math.nan, "negative_prompt": NEGATIVE}, "finite"),
    ],
)
async def test_a_wrong_embedding_is_refused_by_name(
    caller: Caller, tensors: dict[str, torch.Tensor], rule: str
) -> None:
    error = await refusal(caller, conditioned(**tensors))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "conditioning"
    assert rule in error.violations[0].rule


def damaged(change: Callable[[denoiser_pb2.DenoiseRequest], None]) -> Iterator[denoiser_pb2.DenoiseRequest]:
    first, chunk = requests(start(TEXT), TEXT)
    change(chunk)
    return iter([first, chunk])


async def test_a_wrong_checksum_is_data_loss(caller: Caller) -> None:
    def flip(request: denoiser_pb2.DenoiseRequest) -> None:
        request.chunk.crc32c ^= 1

    assert isinstance(await refusal(caller, damaged(flip)), DataLoss)


async def test_a_chunk_of_another_kind_is_refused(caller: Caller) -> None:
    def rename(request: denoiser_pb2.DenoiseRequest) -> None:
        request.chunk.kind = tensors_pb2.BUNDLE_KIND_LATENTS

    error = await refusal(caller, damaged(rename))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "chunk.kind"


async def test_a_chunk_out_of_order_is_refused(caller: Caller) -> None:
    def move(request: denoiser_pb2.DenoiseRequest) -> None:
        request.chunk.offset = 8

    error = await refusal(caller, damaged(move))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "chunk.offset"


async def test_a_size_other_than_announced_is_refused(caller: Caller) -> None:
    def grow(request: denoiser_pb2.DenoiseRequest) -> None:
        request.chunk.total_size += 8

    error = await refusal(caller, damaged(grow))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "chunk.total_size"


async def test_a_truncated_bundle_is_refused(caller: Caller) -> None:
    text = conditioning()
    first = start(text)
    half = next(chunks(tensors_pb2.BUNDLE_KIND_CONDITIONING, text[: len(text) // 2]))
    half.total_size = len(text)
    stream = iter([denoiser_pb2.DenoiseRequest(start=first), denoiser_pb2.DenoiseRequest(chunk=half)])
    error = await refusal(caller, stream)
    assert isinstance(error, InvalidRequest)
    assert error.reason == "BUNDLE_TRUNCATED"


@pytest.mark.parametrize(
    "payload", [b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}" * 20, b"\x02" + b"\0" * 7 + b"{]"]
)
async def test_a_header_that_lies_is_refused(caller: Caller, payload: bytes) -> None:
    error = await refusal(caller, requests(start(payload), payload))
    assert isinstance(error, InvalidRequest)
    assert error.reason == "BUNDLE_INVALID"


async def test_a_stream_without_a_start_is_refused(caller: Caller) -> None:
    chunk = next(chunks(tensors_pb2.BUNDLE_KIND_CONDITIONING, TEXT))
    error = await refusal(caller, iter([denoiser_pb2.DenoiseRequest(chunk=chunk)]))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "start"


async def test_an_empty_stream_is_refused(caller: Caller) -> None:
    assert isinstance(await refusal(caller, iter([])), InvalidRequest)


async def test_a_second_start_is_refused(caller: Caller) -> None:
    first = denoiser_pb2.DenoiseRequest(start=start(TEXT))
    error = await refusal(caller, iter([first, first]))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "start"


async def test_more_chunks_than_announced_are_refused(caller: Caller) -> None:
    stream = list(requests(start(TEXT), TEXT))
    assert isinstance(await refusal(caller, iter([*stream, stream[-1]])), InvalidRequest)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": torch.zeros(1, 16, 3, 8, 7)}, "shape"),
        ({"x": torch.zeros(1, 16, 3, 8, 8, dtype=torch.float16)}, "float32"),
        ({"x": torch.full((1, 16, 3, 8, 8), math.nan)}, "x must be finite"),
        ({"x_last": torch.full((1, 16, 3, 8, 8), math.inf)}, "x_last must be finite"),
        ({"surprise": torch.zeros(1)}, "has denoised"),
    ],
)
async def test_a_state_with_wrong_tensors_is_refused(
    caller: Caller, change: dict[str, torch.Tensor], rule: str
) -> None:
    first = await caller.denoise(end_step=4)
    bundle = first.bundles[-1].bundle
    tensors = {**dict(bundle.tensors), **to_bundle(change, {}).tensors}
    state = pack(type(bundle)(tensors=tensors, metadata=bundle.metadata))
    error = await refusal(caller, requests(start(TEXT, state, first_step=4), TEXT, state))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "state"
    assert rule in error.violations[0].rule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "0" * 32}, "another model, schedule, solver, guidance or shape"),
        ({"schema_version": "2"}, "schema_version must be 1, not 2"),
        ({"next_step": "5"}, "continues at step 5, not 4"),
    ],
)
async def test_a_state_of_another_run_version_or_step_does_not_fit(
    caller: Caller, change: dict[str, str], said: str
) -> None:
    bundle = (await caller.denoise(end_step=4)).bundles[-1].bundle
    state = pack(type(bundle)(tensors=bundle.tensors, metadata={**bundle.metadata, **change}))
    error = await refusal(caller, requests(start(TEXT, state, first_step=4), TEXT, state))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "STATE_MISMATCH"
    assert said in error.message
