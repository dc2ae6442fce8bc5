"""The files that are made of a clip, as players and tools see them."""

import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from models.untrained import write_untrained
from rushes.v1 import finishing_pb2, postprocess_pb2, postprocess_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.lifecycle import run_server
from services.postprocess.config import PostprocessConfig
from services.postprocess.service import open_postprocess
from tests.postprocess.calls import Clip, Service, draw_latents, render, render_requests

OpenService = Callable[..., AbstractAsyncContextManager[Service]]
VIDEO = postprocess_pb2.ARTIFACT_KIND_VIDEO
SPRITE = postprocess_pb2.ARTIFACT_KIND_SPRITE


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
