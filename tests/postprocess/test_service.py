import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import grpc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from models.untrained import write_untrained
from rushes.v1 import finishing_pb2, postprocess_pb2, postprocess_pb2_grpc, sampling_pb2, tensors_pb2
from services.chassis.bundles import Bundle, Tensor, chunks, pack
from services.chassis.channels import open_channel
from services.chassis.errors import (
    DataLoss,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    RushesError,
    Unavailable,
    from_rpc_error,
)
from services.chassis.lifecycle import Running, run_server
from services.postprocess.config import PostprocessConfig
from services.postprocess.frames import Pixels
from services.postprocess.service import open_postprocess

LATENTS = tensors_pb2.BUNDLE_KIND_LATENTS
CONDITIONING = tensors_pb2.BUNDLE_KIND_CONDITIONING
Requests = Iterable[postprocess_pb2.RenderRequest]


@dataclass
class Service:
    """A running service and a stub that calls it."""

    stub: postprocess_pb2_grpc.PostprocessServiceStub
    running: Running


OpenService = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture
def postprocess(model: Path) -> OpenService:
    @asynccontextmanager
    async def serve(**settings: object) -> AsyncIterator[Service]:
        config = PostprocessConfig(model=model, device="cpu", **settings)
        async with (
            run_server(config, "postprocess", partial(open_postprocess, config)) as running,
            open_channel(running.address) as channel,
        ):
            yield Service(stub=postprocess_pb2_grpc.PostprocessServiceStub(channel), running=running)

    return serve


def _latents(frames: int, *, width: int = 64, height: int = 48, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, (frames - 1) // 4 + 1, height // 8, width // 8, generator=generator)


def _bundle(latents: torch.Tensor, *, name: str = "latents", dtype: str = "F32") -> bytes:
    data = latents.contiguous().numpy().tobytes()
    return pack(Bundle(tensors={name: Tensor(dtype=dtype, shape=tuple(latents.shape), data=data)}))


def _start(payload: bytes, **fields: object) -> postprocess_pb2.RenderRequest:
    shape = sampling_pb2.VideoShape(width=64, height=48, num_frames=9)
    values = {"shape": shape, "latents_size": len(payload)} | fields
    return postprocess_pb2.RenderRequest(start=postprocess_pb2.RenderStart(**values))


def _requests(latents: torch.Tensor, **fields: object) -> list[postprocess_pb2.RenderRequest]:
    payload = _bundle(latents)
    shape = sampling_pb2.VideoShape(
        width=latents.shape[3] * 8, height=latents.shape[2] * 8, num_frames=(latents.shape[1] - 1) * 4 + 1
    )
    start = _start(payload, **{"shape": shape, **fields})
    return [start, *(postprocess_pb2.RenderRequest(chunk=chunk) for chunk in chunks(LATENTS, payload))]


@dataclass
class Clip:
    """What one call answered."""

    accepted: postprocess_pb2.RenderAccepted = field(default_factory=postprocess_pb2.RenderAccepted)
    progress: list[postprocess_pb2.RenderProgress] = field(default_factory=list)
    fragments: list[postprocess_pb2.Fragment] = field(default_factory=list)
    artifacts: list[postprocess_pb2.Artifact] = field(default_factory=list)
    result: postprocess_pb2.RenderResult = field(default_factory=postprocess_pb2.RenderResult)
    order: list[str] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(part.data for part in self.fragments)

    def frames(self) -> Pixels:
        with av.open(io.BytesIO(self.data)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


async def _render(service: Service, requests: Requests) -> Clip:
    clip = Clip()
    async for response in service.stub.Render(iter(requests)):
        kind = response.WhichOneof("message")
        value = getattr(response, kind)
        clip.order.append(kind)
        if kind in ("accepted", "result"):
            setattr(clip, kind, value)
        else:
            getattr(clip, {"fragment": "fragments", "artifact": "artifacts"}.get(kind, kind)).append(value)
    return clip


async def _refused(service: Service, requests: Requests) -> RushesError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _render(service, requests)
    return from_rpc_error(refused.value)


async def test_latents_become_a_clip_with_stills_and_a_result(postprocess: OpenService) -> None:
    wanted = [postprocess_pb2.ARTIFACT_KIND_POSTER, postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET]
    async with postprocess() as service:
        clip = await _render(service, _requests(_latents(17), artifacts=wanted, fps=24))

    assert (clip.accepted.width, clip.accepted.height, clip.accepted.num_frames, clip.accepted.fps) == (64, 48, 17, 24)
    assert clip.accepted.content_type.startswith('video/mp4; codecs="avc1.')
    assert clip.order[0] == "accepted"
    assert clip.order[-1] == "result"
    assert clip.order[-3:-1] == ["artifact", "artifact"]
    assert clip.frames().shape == (17, 48, 64, 3)
    assert [(p.frames_decoded, p.frames_total) for p in clip.progress] == [(n, 17) for n in (1, 5, 9, 13, 17)]
    assert (clip.result.num_frames, clip.result.size_bytes) == (17, len(clip.data))
    assert clip.result.duration_seconds == pytest.approx(17 / 24)
    assert clip.result.sha256 == hashlib.sha256(clip.data).hexdigest()
    assert [artifact.kind for artifact in clip.artifacts] == wanted
    for artifact in clip.artifacts:
        assert Image.open(io.BytesIO(artifact.data)).size == (artifact.width, artifact.height)


async def test_fragments_are_numbered_and_placed_without_a_gap(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await _render(service, _requests(_latents(17)))

    offset = 0
    for part in clip.fragments:
        assert part.offset == offset
        assert part.last_part
        offset += len(part.data)
    assert [(f.index, f.first_frame, f.frame_count) for f in clip.fragments] == [
        (0, 0, 0),
        (1, 0, 4),
        (2, 4, 4),
        (3, 8, 4),
        (4, 12, 4),
        (5, 16, 1),
    ]


async def test_the_first_pictures_leave_before_the_clip_is_decoded(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await _render(service, _requests(_latents(33)))

    initialisation = clip.order.index("fragment")
    first_pictures = clip.order.index("fragment", initialisation + 1)
    assert clip.order[:first_pictures].count("progress") <= 4


async def test_the_frames_are_those_of_the_reference_pipeline(postprocess: OpenService, model: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(model / "vae")
    latents = _latents(9)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.inference_mode():
        expected = vae.decode(latents[None] * std + mean).sample[0]
    expected = ((expected + 1) * 127.5).round().permute(1, 2, 3, 0).numpy()

    async with postprocess() as service:
        video = postprocess_pb2.VideoSettings(crf=0, effort=postprocess_pb2.ENCODING_EFFORT_THOROUGH)
        clip = await _render(service, _requests(latents, video=video))

    # Lossless H.264 keeps luma but for its own rounding; chroma is at half resolution.
    def luma(pixels: Pixels) -> Pixels:
        return pixels @ np.array([0.2126, 0.7152, 0.0722])

    assert np.abs(luma(clip.frames().astype(float)) - luma(expected)).mean() < 2


async def test_the_same_latents_give_the_same_bytes_in_another_process_too(
    postprocess: OpenService, tmp_path: Path
) -> None:
    requests = _requests(_latents(9), artifacts=[postprocess_pb2.ARTIFACT_KIND_POSTER])
    async with postprocess() as service, postprocess(listen=f"unix:{tmp_path}/socket") as other:
        first = await _render(service, requests)
        second, third = await asyncio.gather(_render(other, requests), _render(other, requests))

    assert first.data == second.data == third.data
    assert first.artifacts[0].data == second.artifacts[0].data


async def test_the_measured_parts_lie_within_the_call(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await _render(service, _requests(_latents(17), artifacts=[postprocess_pb2.ARTIFACT_KIND_POSTER]))

    result, spans = clip.result, clip.result.spans
    assert {span.name for span in spans} == {
        "render.receive",
        "render.decode",
        "render.inspect",
        "render.stills",
        "render.encode",
        "render.still",
    }
    assert {span.stage for span in spans} == {"postprocess"}
    decode = [span for span in spans if span.name == "render.decode"]
    assert [span.attributes["frames"] for span in decode] == ["1", "4", "4", "4", "4"]
    assert result.decode_seconds == pytest.approx(sum(span.duration_seconds for span in decode))
    assert result.decode_seconds == pytest.approx(sum(progress.seconds for progress in clip.progress))
    assert 0 <= result.encode_tail_seconds <= result.encode_seconds
    for before, after in pairwise(decode):
        assert before.start_seconds + before.duration_seconds <= after.start_seconds


async def test_settings_that_are_left_out_are_filled_in_and_said(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await _render(service, _requests(_latents(1)))

    assert clip.accepted.fps == 16
    assert clip.accepted.video == postprocess_pb2.VideoSettings(
        codec=postprocess_pb2.VIDEO_CODEC_H264,
        crf=18,
        effort=postprocess_pb2.ENCODING_EFFORT_FAST,
        fragment_frames=4,
    )


async def test_a_tiled_service_renders_the_same_size(postprocess: OpenService) -> None:
    async with postprocess(tile_size=64, tile_overlap=32) as service:
        clip = await _render(service, _requests(_latents(5, width=128, height=96)))

    assert clip.frames().shape == (5, 96, 128, 3)


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_clip_is_interpolated_enlarged_fitted_and_labelled_on_the_way(postprocess: OpenService) -> None:
    finish = finishing_pb2.FinishPlan(
        target_fps=32,
        upscale=2,
        width=120,
        height=100,
        fit=finishing_pb2.FIT_PAD,
        fade_in_seconds=0.1,
        label=finishing_pb2.Label(text="AI generated"),
        logo=finishing_pb2.Logo(image=_png(40, 20), corner=finishing_pb2.CORNER_TOP_LEFT),
        subtitles="1\n00:00:00,000 --> 00:00:00,500\nHello\n",
    )
    async with postprocess() as service:
        plain = await _render(service, _requests(_latents(9)))
        clip = await _render(service, _requests(_latents(9), finish=finish))

    accepted, frames = clip.accepted, clip.frames()
    assert (accepted.width, accepted.height, accepted.num_frames, accepted.fps) == (120, 100, 17, 32)
    assert accepted.finish.upscaler == "lanczos"
    assert accepted.finish.label.opacity == 0.8
    assert accepted.finish.logo.width_share == 0.15
    assert accepted.video.fragment_frames == 8
    assert plain.accepted.finish == finishing_pb2.FinishPlan(
        target_fps=16, upscale=1, upscaler="lanczos", width=64, height=48, fit=finishing_pb2.FIT_CROP
    )
    assert frames.shape == (17, 100, 120, 3)
    assert clip.result.duration_seconds == pytest.approx(17 / 32)
    assert not frames[8, :4, 60:].astype(int).max() > 30
    assert frames[8, 8, 12, 0] > 180
    assert set(clip.result.stage_seconds) == {
        "decode",
        "interpolate",
        "upscale",
        "inspect",
        "finish",
        "stills",
        "encode",
    }
    inner = frames[8, 20:45, 30:110].astype(int)
    enlarged = np.asarray(Image.fromarray(plain.frames()[4]).resize((120, 90), Image.Resampling.LANCZOS))
    assert np.abs(inner - enlarged[15:40, 30:110]).mean() < 20


async def test_the_quality_gate_reports_what_it_finds_and_refuses_where_the_rule_says_so(
    postprocess: OpenService,
) -> None:
    def policy(action: int) -> finishing_pb2.InspectionPolicy:
        check = finishing_pb2.INSPECTION_CHECK_OVEREXPOSED
        return finishing_pb2.InspectionPolicy(rules=[{"check": check, "action": action, "threshold": -1.0}])

    async with postprocess(slots=1) as service:
        warned = await _render(service, _requests(_latents(5), inspection=policy(finishing_pb2.FINDING_ACTION_WARN)))
        refused = await _refused(service, _requests(_latents(5), inspection=policy(finishing_pb2.FINDING_ACTION_FAIL)))

    (finding,) = [f for f in warned.result.findings if f.check == finishing_pb2.INSPECTION_CHECK_OVEREXPOSED]
    assert finding.action == finishing_pb2.FINDING_ACTION_WARN
    assert (finding.start_seconds, finding.end_seconds) == (0, 5 / 16)
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "QUALITY_GATE"
    assert refused.metadata["check"] == "overexposed"


def _bad_finishes() -> list[tuple[dict[str, object], str]]:
    twice = {"check": finishing_pb2.INSPECTION_CHECK_BLACK}
    return [
        ({"finish": {"target_fps": 121}}, "start.finish.target_fps"),
        ({"finish": {"upscale": 3}}, "start.finish.upscale"),
        ({"finish": {"upscaler": "magic"}}, "start.finish.upscaler"),
        ({"finish": {"width": 63, "height": 48}}, "start.finish.width"),
        ({"finish": {"width": 64}}, "start.finish"),
        ({"finish": {"fade_in_seconds": 9}}, "start.finish.fade_out_seconds"),
        ({"finish": {"fade_in_seconds": float("nan")}}, "start.finish.fade_in_seconds"),
        ({"finish": {"label": {"text": "a\nb"}}}, "start.finish.label.text"),
        ({"finish": {"label": {"text": "a\U000f0000"}}}, "start.finish.label.text"),
        ({"finish": {"logo": {"image": b"no picture"}}}, "start.finish.logo.image"),
        ({"finish": {"logo": {"image": _png(5000, 4000)}}}, "start.finish.logo.image"),
        ({"finish": {"subtitles": "nonsense"}}, "start.finish.subtitles"),
        ({"finish": {"subtitles": "1\n00:00:09,000 --> 00:00:10,000\nlate\n"}}, "start.finish.subtitles"),
        ({"inspection": {"rules": [twice, twice]}}, "start.inspection.rules[1].check"),
    ]


@pytest.mark.parametrize(("fields", "field_name"), _bad_finishes())
async def test_a_finish_that_cannot_be_made_is_refused_before_device_work(
    postprocess: OpenService, fields: dict[str, object], field_name: str
) -> None:
    async with postprocess(slots=1) as service:
        refused = await _refused(service, _requests(_latents(9), **fields))

    assert isinstance(refused, InvalidRequest)
    assert [violation.field for violation in refused.violations] == [field_name]


def _bad_shapes() -> list[tuple[str, list[postprocess_pb2.RenderRequest], str]]:
    good = _latents(9)
    nan = good.clone()
    nan[3, 1, 2, 4] = float("nan")
    infinite = good.clone()
    infinite[0, 0, 0, 0] = float("inf")
    shape = sampling_pb2.VideoShape

    def chunked(payload: bytes, kind: int = LATENTS, **fields: object) -> list[postprocess_pb2.RenderRequest]:
        return [
            _start(payload, **fields),
            *(postprocess_pb2.RenderRequest(chunk=chunk) for chunk in chunks(kind, payload)),
        ]

    short = chunked(_bundle(_latents(5)))
    wrong_type = pack(
        Bundle(tensors={"latents": Tensor(dtype="F16", shape=(16, 3, 6, 8), data=bytes(16 * 3 * 48 * 2))})
    )
    lying = bytearray(_bundle(good))
    lying[8:72] = lying[8:72].replace(b"[16,3,6,8]", b"[16,3,6,9]")
    late = chunked(_bundle(good))
    late[1].chunk.offset = 7
    return [
        ("NaN", chunked(_bundle(nan)), "bundle.latents"),
        ("infinite", chunked(_bundle(infinite)), "bundle.latents"),
        ("fewer frames than announced", short, "bundle.latents"),
        ("wrong channels", chunked(_bundle(good[:8])), "bundle.latents"),
        ("wrong dtype", chunked(wrong_type), "bundle.latents"),
        ("wrong name", chunked(_bundle(good, name="x0")), "bundle"),
        ("lying header", chunked(bytes(lying)), "bundle"),
        ("no safetensors", chunked(b"\xff" * 4096), "bundle"),
        ("wrong kind", chunked(_bundle(good), CONDITIONING), "chunk.kind"),
        ("wrong offset", late, "chunk.offset"),
        ("too large", [_start(b"", latents_size=2**40)], "start.latents_size"),
        ("no size", [_start(b"")], "start.latents_size"),
        ("chunk first", late[1:], "start"),
        ("start twice", [late[0], late[0]], "chunk"),
        ("nothing", [], "start"),
        ("frames", [_start(b"x", shape=shape(width=64, height=48, num_frames=10))], "start.shape.num_frames"),
        ("odd size", [_start(b"x", shape=shape(width=72, height=48, num_frames=9))], "start.shape.width"),
        ("wide", [_start(b"x", shape=shape(width=512, height=48, num_frames=9))], "start.shape.width"),
        ("long", [_start(b"x", shape=shape(width=64, height=48, num_frames=85))], "start.shape.num_frames"),
        ("no shape", [_start(b"x", shape=None)], "start.shape"),
        ("model", chunked(_bundle(good), model="other"), "start.model"),
        ("crf", [_start(b"x", video=postprocess_pb2.VideoSettings(crf=52))], "start.video.crf"),
        ("fps", [_start(b"x", fps=-1)], "start.fps"),
        ("artifact", [_start(b"x", artifacts=[77])], "start.artifacts[0]"),
    ]


@pytest.mark.parametrize(("requests", "field_name"), [pytest.param(r, f, id=n) for n, r, f in _bad_shapes()])
async def test_bad_input_is_refused_with_its_field_and_the_slot_is_free_afterwards(
    postprocess: OpenService, requests: list[postprocess_pb2.RenderRequest], field_name: str
) -> None:
    async with postprocess(slots=1) as service:
        refused = await _refused(service, requests)
        clip = await _render(service, _requests(_latents(1)))

    assert isinstance(refused, InvalidRequest)
    assert [violation.field for violation in refused.violations] == [field_name]
    assert clip.result.num_frames == 1


async def test_latents_that_overflow_the_decoder_end_the_call_naming_stage_and_frame(postprocess: OpenService) -> None:
    latents = _latents(9)
    latents[:, 1:] = 3.4e38
    async with postprocess(slots=1) as service:
        refused = await _refused(service, _requests(latents))
        clip = await _render(service, _requests(_latents(1)))

    assert refused.reason == "DECODE_NOT_FINITE"
    assert dict(refused.metadata) == {"stage": "decode", "frame": "1"}
    assert clip.result.num_frames == 1


async def test_a_truncated_bundle_is_refused(postprocess: OpenService) -> None:
    requests = _requests(_latents(81, width=256, height=256))
    assert len(requests) > 2
    async with postprocess(slots=1) as service:
        refused = await _refused(service, requests[:-1])
        clip = await _render(service, _requests(_latents(1)))

    assert (type(refused), refused.reason) == (InvalidRequest, "BUNDLE_TRUNCATED")
    assert clip.result.num_frames == 1


async def test_a_chunk_with_a_wrong_checksum_is_data_loss(postprocess: OpenService) -> None:
    requests = _requests(_latents(9))
    requests[1].chunk.crc32c ^= 1
    async with postprocess(slots=1) as service:
        refused = await _refused(service, requests)
        clip = await _render(service, _requests(_latents(1)))

    assert isinstance(refused, DataLoss)
    assert clip.result.num_frames == 1


async def test_a_call_without_a_free_slot_is_refused_at_once(postprocess: OpenService) -> None:
    requests = _requests(_latents(9))
    async with postprocess(slots=1, retry_after_seconds=7) as service:
        first = service.stub.Render()
        await first.write(requests[0])
        await first.wait_for_connection()
        refused = await _refused_when_busy(service, requests)
        for request in requests[1:]:
            await first.write(request)
        await first.done_writing()
        answers = [response.WhichOneof("message") async for response in first]

    assert isinstance(refused, Exhausted)
    assert refused.retry_after_seconds == 7
    assert answers[-1] == "result"


async def _refused_when_busy(service: Service, requests: Requests) -> RushesError:
    """The refusal of a call, as soon as the call before it has arrived."""
    while True:
        try:
            await _render(service, requests)
        except grpc.aio.AioRpcError as refused:
            return from_rpc_error(refused)


async def _render_when_free(service: Service, requests: Requests) -> Clip:
    """The clip, as soon as the service does not refuse it for want of a slot."""
    while True:
        try:
            return await _render(service, requests)
        except grpc.aio.AioRpcError as refused:
            if refused.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            await asyncio.sleep(0.01)


async def test_cancelling_stops_the_work_and_frees_the_slot(postprocess: OpenService) -> None:
    async with postprocess(slots=1) as service:
        call = service.stub.Render(iter(_requests(_latents(81, width=256, height=256))))
        async for response in call:
            if response.HasField("progress"):
                break
        assert response.progress.frames_decoded < 9
        call.cancel()
        clip = await _render_when_free(service, _requests(_latents(1)))

    assert clip.result.num_frames == 1


async def test_a_deadline_ends_the_call(postprocess: OpenService) -> None:
    async with postprocess(slots=1) as service:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in service.stub.Render(iter(_requests(_latents(81, width=256, height=256))), timeout=0.4):
                pass
        clip = await _render_when_free(service, _requests(_latents(1)))

    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert clip.result.num_frames == 1


async def test_a_draining_service_takes_no_new_work(postprocess: OpenService) -> None:
    async with postprocess() as service:
        service.running.draining.set()
        refused = await _refused(service, _requests(_latents(1)))

    assert isinstance(refused, Unavailable)


async def test_the_service_describes_itself(postprocess: OpenService) -> None:
    async with postprocess(slots=3) as service:
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())

    assert (described.model, described.dtype, described.device) == ("rushes-untrained", "float32", "cpu")
    assert described.slots == 3
    assert len(described.fingerprint) == 16
    assert list(described.codecs) == [postprocess_pb2.VIDEO_CODEC_H264]
    assert list(described.upscalers) == ["lanczos"]
