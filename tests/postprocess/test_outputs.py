"""The files that are made of a clip, as players and tools see them."""

import io
import json
import re
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import grpc
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageSequence

from rushes.v1 import finishing_pb2, postprocess_pb2
from services.chassis.errors import InvalidRequest
from services.postprocess.codecs import Codec, works
from services.postprocess.orders import plan_rendering
from services.postprocess.provenance import SOURCE_TYPE, XMP_UUID
from tests.postprocess.calls import Clip, draw_latents, refusal, render, render_requests, start_request
from tests.postprocess.conftest import OpenService

VIDEO = postprocess_pb2.ARTIFACT_KIND_VIDEO
HLS = postprocess_pb2.ARTIFACT_KIND_HLS
SPRITE = postprocess_pb2.ARTIFACT_KIND_SPRITE


def boxes(data: bytes) -> list[str]:
    kinds, offset = [], 0
    while offset < len(data):
        kinds.append(data[offset + 4 : offset + 8].decode())
        offset += int.from_bytes(data[offset : offset + 4], "big")
    return kinds


def packets(data: bytes) -> list[bytes]:
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


async def make(postprocess: OpenService, *, frames: int = 17, **fields: object) -> Clip:
    async with postprocess() as service:
        return await render(service, render_requests(draw_latents(frames), **fields))


async def test_the_finished_mp4_has_its_index_in_front_and_the_packets_of_the_fragments(
    postprocess: OpenService,
) -> None:
    clip = await make(postprocess, artifacts=[VIDEO])

    data = clip.files()["clip.mp4"]
    kinds = boxes(data)
    assert kinds.index("moov") < kinds.index("mdat")
    assert "moof" not in kinds
    assert packets(data) == packets(clip.data)
    assert clip.outputs[0].content_type == "video/mp4"


async def test_the_stream_and_the_finished_mp4_declare_that_a_model_made_them(postprocess: OpenService) -> None:
    async with postprocess(content_producer="Studio <1>") as service:
        clip = await render(service, render_requests(draw_latents(17), artifacts=[VIDEO]))

    data = clip.files()["clip.mp4"]
    for file in (data, clip.data):
        packet = file[file.index(XMP_UUID) :]
        assert f">{SOURCE_TYPE}<".encode() in packet
        assert b'"ContentProducer":"Studio &lt;1&gt;"' in packet
    assert boxes(data)[-1] == "uuid"
    with av.open(io.BytesIO(data)) as container:
        fields = json.loads(container.metadata["AIGC"])
    assert (fields["Label"], fields["ContentProducer"]) == ("1", "Studio <1>")
    assert re.fullmatch("[0-9a-f]{32}", fields["ProduceID"])


@pytest.mark.parametrize("fps", [16, 24, 60])
async def test_the_finished_mp4_has_the_right_frames_length_rate_and_colour_tags(
    postprocess: OpenService, fps: int
) -> None:
    finish = finishing_pb2.FinishPlan(target_fps=fps)
    clip = await make(postprocess, artifacts=[VIDEO], finish=finish)

    count = int(16 * fps / 16) + 1
    with av.open(io.BytesIO(clip.files()["clip.mp4"])) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (stream.frames, stream.average_rate) == (count, fps)
        assert float(stream.duration * stream.time_base) == pytest.approx(count / fps, abs=1e-3)
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert [frame.pts * frame.time_base * fps for frame in container.decode(stream)] == pytest.approx(range(count))


async def test_the_sprite_shows_the_frame_that_its_track_names(postprocess: OpenService) -> None:
    clip = await make(postprocess, artifacts=[SPRITE], frames=33)

    files = clip.files()
    grid = np.asarray(Image.open(io.BytesIO(files["sprite.jpg"])), float)
    cues = re.findall(
        r"(\S+) --> (\S+)\nsprite\.jpg#xywh=(\d+),(\d+),(\d+),(\d+)\n", files["sprite.vtt"].decode("utf-8")
    )
    assert len(cues) == 25
    assert (cues[0][0], cues[-1][1]) == ("00:00:00.000", "00:00:02.062")
    assert [end for _, end, *_ in cues[:-1]] == [start for start, *_ in cues[1:]]
    frames = clip.frames().astype(float)
    for start, _, left, top, width, height in cues[::8]:
        x, y, w, h = int(left), int(top), int(width), int(height)
        shown = grid[y : y + h, x : x + w]
        frame = frames[round(float(start[6:]) * 16)]
        assert np.abs(shown - frame).mean() < 12


async def test_no_file_is_made_that_was_not_asked_for(postprocess: OpenService) -> None:
    clip = await make(postprocess, frames=5)

    assert clip.files() == {}


CODECS = {
    postprocess_pb2.VIDEO_CODEC_H264: ("h264", "clip.mp4", r"avc1\.[0-9a-f]{6}"),
    postprocess_pb2.VIDEO_CODEC_H265: ("hevc", "clip.mp4", r"hvc1\.1\.6\.L\d+(\.[0-9a-f]+)+"),
    postprocess_pb2.VIDEO_CODEC_AV1: ("av1", "clip.mp4", r"av01\.0\.\d\dM\.08"),
    postprocess_pb2.VIDEO_CODEC_VP9: ("vp9", "clip.webm", r"vp09\.00\.\d\d\.08"),
}


@pytest.mark.parametrize("codec", CODECS)
async def test_every_codec_gives_fragments_and_a_file_that_ffmpeg_accepts(
    postprocess: OpenService, tmp_path: Path, codec: postprocess_pb2.VideoCodec.ValueType
) -> None:
    video = postprocess_pb2.VideoSettings(codec=codec, effort=postprocess_pb2.ENCODING_EFFORT_FASTEST)
    clip = await make(postprocess, artifacts=[VIDEO], video=video, frames=9)

    kind, name, codecs = CODECS[codec]
    assert re.fullmatch(f'video/mp4; codecs="{codecs}"', clip.accepted.content_type), clip.accepted.content_type
    assert [part.frame_count for part in clip.fragments] == [0, 4, 4, 1]
    for data in (clip.data, clip.files()[name]):
        path = tmp_path / "clip"
        path.write_bytes(data)
        accepted_by_ffmpeg(path)
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            assert (stream.codec.canonical_name, stream.average_rate) == (kind, 16)
            frames = list(container.decode(stream))
            assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert len(frames) == 9
    if kind == "hevc":
        assert b"hvc1" in clip.files()[name]
        assert b"hev1" not in clip.files()[name]


async def test_a_rate_in_bits_is_about_kept_and_a_quality_orders_the_sizes(postprocess: OpenService) -> None:
    sizes = []
    for quality in (postprocess_pb2.VIDEO_QUALITY_DRAFT, postprocess_pb2.VIDEO_QUALITY_MASTER):
        video = postprocess_pb2.VideoSettings(quality=quality)
        sizes.append((await make(postprocess, video=video, frames=17)).result.size_bytes)
    assert sizes[0] < sizes[1] / 2

    video = postprocess_pb2.VideoSettings(bits_per_second=60_000)
    clip = await make(postprocess, video=video, frames=81)
    assert not clip.accepted.video.HasField("crf")
    assert 8 * clip.result.size_bytes / clip.result.duration_seconds == pytest.approx(60_000, rel=0.5)


@pytest.mark.parametrize(("kind", "name"), [(6, "preview.gif"), (7, "preview.webp")])
async def test_an_animated_preview_moves_as_long_as_the_clip(postprocess: OpenService, kind: int, name: str) -> None:
    clip = await make(postprocess, artifacts=[kind], frames=17)

    image = Image.open(io.BytesIO(clip.files()[name]))
    durations, pictures = [], []
    for frame in ImageSequence.Iterator(image):
        frame.load()
        durations.append(frame.info["duration"])
        pictures.append(np.asarray(frame.convert("RGB"), float))
    assert (image.size, image.n_frames, image.info["loop"]) == ((64, 48), 10, 0)
    assert sum(durations) == pytest.approx(1000 * 17 / 16, abs=5)
    assert np.abs(pictures[-1] - pictures[0]).mean() > 1


@pytest.mark.parametrize(
    ("video", "field"),
    [
        ({"codec": postprocess_pb2.VIDEO_CODEC_H264, "crf": 52}, "start.video.crf"),
        ({"container": postprocess_pb2.CONTAINER_WEBM}, "start.video.container"),
        ({"crf": 20, "bits_per_second": 1000}, "start.video.bits_per_second"),
    ],
)
async def test_settings_that_do_not_go_together_are_refused(
    postprocess: OpenService, video: dict[str, int], field: str
) -> None:
    async with postprocess() as service:
        requests = render_requests(draw_latents(5), video=postprocess_pb2.VideoSettings(**video))  # type: ignore[arg-type]
        refused = await refusal(service, requests)

    assert isinstance(refused, InvalidRequest)
    assert [one.field for one in refused.violations] == [field]


def test_a_codec_without_an_encoder_is_refused_with_those_that_there_are() -> None:
    start = start_request(b"", video=postprocess_pb2.VideoSettings(codec=postprocess_pb2.VIDEO_CODEC_AV1)).start
    with pytest.raises(InvalidRequest, match=r"start.video.codec: has no encoder here; there are h264"):
        plan_rendering(start, fps=Fraction(16), encoders={Codec.H264: "libx264"})


async def test_an_encoder_is_named_only_if_it_worked(postprocess: OpenService) -> None:
    async with postprocess() as service:
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())

    assert len(described.encoders) == len(described.codecs)
    assert all(works(encoder) for encoder in described.encoders)
    assert postprocess_pb2.VIDEO_CODEC_H264 in described.codecs
    assert not works("no-such-encoder")


async def test_an_hls_presentation_plays_from_its_playlist_and_every_segment_begins_with_a_key_frame(
    postprocess: OpenService, tmp_path: Path
) -> None:
    clip = await make(postprocess, artifacts=[HLS], frames=81)

    files = clip.files()
    assert next(iter(files)) == "hls/index.m3u8"
    for name, data in files.items():
        (tmp_path / Path(name).name).write_bytes(data)
    accepted_by_ffmpeg(tmp_path / "index.m3u8")
    with av.open(str(tmp_path / "index.m3u8")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 81
    assert [frame.time for frame in frames] == pytest.approx([index / 16 for index in range(81)], abs=1e-3)
    playlist = files["hls/video.m3u8"].decode("ascii")
    assert re.findall(r"#EXTINF:([\d.]+),\n(\S+)", playlist) == [
        ("2.000000", "segment-00001.m4s"),
        ("2.000000", "segment-00002.m4s"),
        ("1.062500", "segment-00003.m4s"),
    ]
    assert "#EXT-X-TARGETDURATION:2\n" in playlist
    assert "RESOLUTION=64x48,FRAME-RATE=16.000" in files["hls/index.m3u8"].decode("ascii")
    for number in (1, 2, 3):
        alone = files["hls/init.mp4"] + files[f"hls/segment-{number:05d}.m4s"]
        with av.open(io.BytesIO(alone)) as container:
            assert next(iter(container.demux(video=0))).is_keyframe
    assert files["hls/init.mp4"] + b"".join(files[f"hls/segment-{n:05d}.m4s"] for n in (1, 2, 3)) == clip.data


@pytest.mark.parametrize(
    ("codec", "name", "coding"),
    [
        (postprocess_pb2.VIDEO_CODEC_H264, "clip.mp4", "mov_text"),
        (postprocess_pb2.VIDEO_CODEC_VP9, "clip.webm", "webvtt"),
    ],
)
async def test_soft_subtitles_are_a_track_a_file_and_part_of_the_playlist(
    postprocess: OpenService, tmp_path: Path, codec: int, name: str, coding: str
) -> None:
    finish = finishing_pb2.FinishPlan(
        subtitles="1\n00:00:00,100 --> 00:00:00,400\nHello\n\n2\n00:00:00,500 --> 00:00:09,000\n你好 <b>&</b>\n",
        subtitle_use=finishing_pb2.SUBTITLE_USE_TRACK,
        subtitle_language="zh-Hans",
    )
    video = postprocess_pb2.VideoSettings(codec=codec)  # type: ignore[arg-type]
    clip = await make(postprocess, artifacts=[VIDEO, HLS], finish=finish, video=video)
    plain = await make(postprocess, video=video)

    files = clip.files()
    assert clip.data == plain.data
    assert files["subtitles.vtt"].decode("utf-8") == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:00.400\nHello\n\n00:00:00.500 --> 00:00:01.062\n你好 &amp;\n"
    )
    with av.open(io.BytesIO(files[name])) as opened:
        (track,) = opened.streams.subtitles
        assert (track.codec_context.name, track.metadata["language"]) == (coding, "zho")
        assert len(list(opened.decode(video=0))) == 17
    (tmp_path / "clip").write_bytes(files[name])
    accepted_by_ffmpeg(tmp_path / "clip")
    assert 'TYPE=SUBTITLES,GROUP-ID="subtitles",NAME="zh-Hans"' in files["hls/index.m3u8"].decode("ascii")
    assert files["hls/subtitles.vtt"] == files["subtitles.vtt"]
    assert clip.accepted.finish.subtitle_use == finishing_pb2.SUBTITLE_USE_TRACK


async def test_a_loop_is_shorter_by_its_cross_fade_and_adjustments_are_repeated(postprocess: OpenService) -> None:
    finish = finishing_pb2.FinishPlan(loop_seconds=0.25, adjustments=finishing_pb2.Adjustments(saturation=0))
    clip = await make(postprocess, finish=finish)

    frames = clip.frames().astype(int)
    assert len(frames) == clip.accepted.num_frames == clip.result.num_frames == 13
    assert np.abs(frames.max(axis=-1) - frames.min(axis=-1)).mean() < 2
    assert (clip.accepted.finish.loop_seconds, clip.accepted.finish.adjustments.saturation) == (0.25, 0)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"data": b"x"}], grpc.StatusCode.INVALID_ARGUMENT),
        ([{"start": {}}, {"data": b"this is no video"}], grpc.StatusCode.INVALID_ARGUMENT),
        ([{"start": {}}, {"start": {}}], grpc.StatusCode.INVALID_ARGUMENT),
        ([{"start": {"first_frame": -1}}], grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_frames_of_what_is_no_clip_are_refused(
    postprocess: OpenService, messages: list[dict[str, Any]], code: grpc.StatusCode
) -> None:
    async with postprocess() as service:
        requests = [postprocess_pb2.RenderFramesRequest(**message) for message in messages]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [answer async for answer in service.stub.RenderFrames(iter(requests))]

    assert refused.value.code() == code


async def test_a_range_after_the_end_and_a_damaged_clip_are_refused(postprocess: OpenService) -> None:
    async with postprocess() as service:
        clip = await render(service, render_requests(draw_latents(9), artifacts=[VIDEO]))
        data = clip.files()["clip.mp4"]

        async def frames(data: bytes, first: int) -> list[int]:
            start = postprocess_pb2.RenderFramesRequest(start=postprocess_pb2.FrameRange(first_frame=first))
            requests = [start, postprocess_pb2.RenderFramesRequest(data=data)]
            return [answer.frame.index async for answer in service.stub.RenderFrames(iter(requests))]

        assert await frames(data, 6) == [6, 7, 8]
        with pytest.raises(grpc.aio.AioRpcError) as beyond:
            await frames(data, 9)
        assert beyond.value.code() == grpc.StatusCode.OUT_OF_RANGE
        with pytest.raises(grpc.aio.AioRpcError) as damaged:
            await frames(data[:200], 0)
        assert damaged.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def accepted_by_ffmpeg(path: Path) -> None:
    """Decode everything with FFmpeg's own program, which must find no fault."""
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-xerror", "-i", str(path), "-f", "null", "-"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
