import asyncio
import hashlib
import io
import tempfile
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from rushes.v1 import finishing_pb2, postprocess_pb2
from services.chassis.errors import (
    FailedPrecondition,
    RushesError,
    from_rpc_error,
)
from services.postprocess.frames import Pixels
from services.postprocess.mark_reading import read_mark
from tests.postprocess.calls import (
    Requests,
    Service,
    draw_latents,
    png,
    refusal,
    render,
    render_requests,
)
from tests.postprocess.conftest import OpenService


async def test_latents_become_a_clip_with_stills_and_a_result(postprocess: OpenService) -> None:
    wanted = [postprocess_pb2.ARTIFACT_KIND_POSTER, postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET]
    async with postprocess() as service:
        clip = await render(service, render_requests(draw_latents(17), artifacts=wanted, fps=24))

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
        clip = await render(service, render_requests(draw_latents(17)))

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
        clip = await render(service, render_requests(draw_latents(33)))

    initialisation = clip.order.index("fragment")
    first_pictures = clip.order.index("fragment", initialisation + 1)
    assert clip.order[:first_pictures].count("progress") <= 4


async def test_the_frames_are_those_of_the_reference_pipeline(postprocess: OpenService, model: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(model / "vae")
    latents = draw_latents(9)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.inference_mode():
        expected = vae.decode(latents[None] * std + mean).sample[0]
    expected = ((expected + 1) * 127.5).round().permute(1, 2, 3, 0).numpy()

    async with postprocess() as service:
        video = postprocess_pb2.VideoSettings(crf=0, effort=postprocess_pb2.ENCODING_EFFORT_THOROUGH)
        clip = await render(service, render_requests(latents, video=video))

    # Lossless H.264 keeps luma but for its own rounding; chroma is at half resolution.
    def luma(pixels: Pixels) -> Pixels:
        return pixels @ np.array([0.2126, 0.7152, 0.0722])

    assert np.abs(luma(clip.frames().astype(float)) - luma(expected)).mean() < 2


async def test_the_same_latents_give_the_same_bytes_in_another_process_too(
    postprocess: OpenService, tmp_path: Path
) -> None:
    requests = render_requests(draw_latents(9), artifacts=[postprocess_pb2.ARTIFACT_KIND_POSTER])
    async with postprocess() as service, postprocess(listen=f"unix:{tmp_path}/socket") as other:
        first = await render(service, requests)
        second, third = await asyncio.gather(render(other, requests), render(other, requests))

    assert first.data == second.data == third.data
    assert first.artifacts[0].data == second.artifacts[0].data


async def test_the_measured_parts_lie_within_the_call(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await render(
            service, render_requests(draw_latents(17), artifacts=[postprocess_pb2.ARTIFACT_KIND_POSTER])
        )

    result, spans = clip.result, clip.result.spans
    assert {span.name for span in spans} == {
        "render.receive",
        "render.decode",
        "render.inspect",
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
        clip = await render(service, render_requests(draw_latents(1)))

    assert clip.accepted.fps == 16
    assert clip.accepted.video == postprocess_pb2.VideoSettings(
        codec=postprocess_pb2.VIDEO_CODEC_H264,
        crf=18,
        effort=postprocess_pb2.ENCODING_EFFORT_FAST,
        fragment_frames=4,
        container=postprocess_pb2.CONTAINER_MP4,
    )


async def test_a_tiled_service_renders_the_same_size(postprocess: OpenService) -> None:
    async with postprocess(tile_size=64, tile_overlap=32) as service:
        clip = await render(service, render_requests(draw_latents(5, width=128, height=96)))

    assert clip.frames().shape == (5, 96, 128, 3)


async def test_a_clip_is_interpolated_enlarged_fitted_and_labelled_on_the_way(postprocess: OpenService) -> None:
    finish = finishing_pb2.FinishPlan(
        target_fps=32,
        upscale=2,
        width=120,
        height=100,
        fit=finishing_pb2.FIT_PAD,
        fade_in_seconds=0.1,
        label=finishing_pb2.Label(text="AI generated"),
        logo=finishing_pb2.Logo(image=png(40, 20), corner=finishing_pb2.CORNER_TOP_LEFT),
        subtitles="1\n00:00:00,000 --> 00:00:00,500\nHello\n",
    )
    async with postprocess() as service:
        plain = await render(service, render_requests(draw_latents(9)))
        clip = await render(service, render_requests(draw_latents(9), finish=finish))

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
        "still",
        "encode",
    }
    inner = frames[8, 20:45, 30:110].astype(int)
    enlarged = np.asarray(Image.fromarray(plain.frames()[4]).resize((120, 90), Image.Resampling.LANCZOS))
    assert np.abs(inner - enlarged[15:40, 30:110]).mean() < 20


async def test_a_clip_is_marked_on_request(postprocess: OpenService) -> None:
    finish = finishing_pb2.FinishPlan(watermark_id=2**64 - 5)
    async with postprocess() as service:
        clip = await render(service, render_requests(draw_latents(5, width=160, height=160), finish=finish))

    assert clip.accepted.finish.watermark_id == 2**64 - 5
    assert "mark" in clip.result.stage_seconds
    assert read_mark(clip.frames()).mark_id == 2**64 - 5


async def test_the_quality_gate_reports_what_it_finds_and_refuses_where_the_rule_says_so(
    postprocess: OpenService,
) -> None:
    def policy(action: int) -> finishing_pb2.InspectionPolicy:
        check = finishing_pb2.INSPECTION_CHECK_OVEREXPOSED
        return finishing_pb2.InspectionPolicy(rules=[{"check": check, "action": action, "threshold": -1.0}])

    async with postprocess(slots=1) as service:
        warned = await render(
            service, render_requests(draw_latents(5), inspection=policy(finishing_pb2.FINDING_ACTION_WARN))
        )
        refused = await refusal(
            service, render_requests(draw_latents(5), inspection=policy(finishing_pb2.FINDING_ACTION_FAIL))
        )

    (finding,) = [f for f in warned.result.findings if f.check == finishing_pb2.INSPECTION_CHECK_OVEREXPOSED]
    assert finding.action == finishing_pb2.FINDING_ACTION_WARN
    assert (finding.start_seconds, finding.end_seconds) == (0, 5 / 16)
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "QUALITY_GATE"
    assert refused.metadata["check"] == "overexposed"
    assert (float(refused.metadata["start"]), float(refused.metadata["threshold"])) == (0, -1)
    assert float(refused.metadata["score"]) == pytest.approx(finding.score, rel=1e-4)


@pytest.mark.parametrize("action", [finishing_pb2.FINDING_ACTION_FAIL, finishing_pb2.FINDING_ACTION_RETRY])
async def test_a_refused_clip_is_not_rendered_to_its_end_and_leaves_no_file(
    postprocess: OpenService, action: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rule = {"check": finishing_pb2.INSPECTION_CHECK_BLUR, "action": action, "threshold": -1.0}
    policy = finishing_pb2.InspectionPolicy(rules=[rule])
    requests = render_requests(draw_latents(81), inspection=policy, artifacts=[postprocess_pb2.ARTIFACT_KIND_VIDEO])
    heard: list[str] = []
    async with postprocess(slots=1) as service:
        refused = await _heard_until_refused(service, requests, heard)
        again = await render(service, render_requests(draw_latents(1)))

    assert refused.reason == "QUALITY_GATE"
    assert heard.count("progress") < 21
    assert not {"output", "artifact", "result"} & set(heard)
    assert again.result.num_frames == 1
    assert _left(tmp_path) == []


def _left(folder: Path) -> list[str]:
    """The names of what lies in a folder."""
    return [path.name for path in folder.iterdir()]


async def _heard_until_refused(service: Service, requests: Requests, heard: list[str]) -> RushesError:
    try:
        async for response in service.stub.Render(iter(requests)):
            heard.append(str(response.WhichOneof("message")))  # noqa: PERF401 - it is kept up to the refusal
    except grpc.aio.AioRpcError as refused:
        return from_rpc_error(refused)
    raise AssertionError("the clip was not refused")


async def test_latents_that_overflow_the_decoder_end_the_call_naming_stage_and_frame(
    postprocess: OpenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    latents = draw_latents(9)
    latents[:, 1:] = 3.4e38
    async with postprocess(slots=1) as service:
        wanted = [postprocess_pb2.ARTIFACT_KIND_VIDEO]
        refused = await refusal(service, render_requests(latents, artifacts=wanted))
        clip = await render(service, render_requests(draw_latents(1)))

    assert _left(tmp_path) == []
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "DECODE_NOT_FINITE"
    assert dict(refused.metadata) == {
        "stage": "decode",
        "frame": "1",
        "check": "not_finite",
        "start": "0.0625",
        "end": "0.5625",
        "score": "8",
        "threshold": "0",
    }
    assert clip.result.num_frames == 1


async def test_the_service_describes_itself(postprocess: OpenService) -> None:
    async with postprocess(slots=3) as service:
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())

    assert (described.model, described.dtype, described.device) == ("rushes-untrained", "float32", "cpu")
    assert described.slots == 3
    assert len(described.fingerprint) == 16
    assert postprocess_pb2.VIDEO_CODEC_H264 in described.codecs
    assert list(described.upscalers) == ["lanczos"]
