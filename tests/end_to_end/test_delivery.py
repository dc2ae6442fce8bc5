"""What leaves the suite, through real processes: finished clips, and refusals before any device works."""

import asyncio
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import async_playwright

from rushes.client import Client, InvalidRequest, NotFound, OutOfRange, finish_plan, generation_spec, video_settings
from rushes.v1.generation_pb2 import GenerationState
from tests.end_to_end.edge import chromium_program, edge, pages
from tests.end_to_end.processes import Suite, running_suite

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

PROMPT = "a red circle moves left across a blue background"
SHORT = {"width": 64, "height": 64, "num_frames": 9, "steps": 2, "seed": 5}
WORDS = "1\n00:00:00,000 --> 00:00:00,300\nHello\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory, model: Path) -> AsyncIterator[Suite]:
    """Four processes for all tests of this file."""
    async with running_suite(tmp_path_factory.mktemp("suite"), model) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(suite: Suite) -> AsyncIterator[Client]:
    """A caller."""
    async with Client(suite.address) as opened:
        yield opened


def logo() -> bytes:
    """A green picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), (20, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("finish", "field", "rule"),
    [
        ({"logo": b"not a picture"}, "spec.finish.logo.image", "must be a PNG, JPEG or WebP picture"),
        ({"subtitles": "no timing here"}, "spec.finish.subtitles", "line 1: a cue needs a line of timing"),
        ({"subtitles": "00:10:00.000 --> 00:11:00.000\nlate"}, "spec.finish.subtitles", "after the clip's 0.5625 s"),
        ({"label": "\U000e0041"}, "spec.finish.label.text", "must be one line of visible text"),
        ({"upscaler": "magic"}, "spec.finish.upscaler", "must be lanczos or empty"),
        ({"fade_in_seconds": 5.0}, "spec.finish.fade_out_seconds", "must fit into the clip's"),
        ({"target_fps": 121}, "spec.finish.target_fps", ""),
        ({"width": 100}, "spec.finish", "width and height must be given together"),
    ],
)
async def test_a_bad_order_is_refused_by_field_and_rule_before_anything_is_queued(
    client: Client, finish: dict[str, object], field: str, rule: str
) -> None:
    before = [one.id async for one in client.list()]
    with pytest.raises(InvalidRequest) as refused:
        await client.create(generation_spec(PROMPT, **SHORT, finish=finish_plan(**finish)))  # type: ignore[arg-type]

    (violation,) = refused.value.violations
    assert violation.field == field
    assert rule in violation.rule
    assert [one.id async for one in client.list()] == before


async def test_the_command_line_finishes_a_clip_as_it_is_told(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "words.srt").write_text(WORDS, encoding="utf-8")
    (tmp_path / "logo.png").write_bytes(logo())
    process = await rushes(
        suite,
        tmp_path,
        *("generate", PROMPT, "--width", "64", "--height", "64", "--frames", "9", "--steps", "2", "--seed", "5"),
        *("--upscale", "2", "--fps", "32", "--watermark-id", "abc123", "--label", "AI", "--subtitles", "words.srt"),
        *("--logo", "logo.png", "-o", "clip.mp4", "--json"),
    )

    assert process[0] == 0, process[2]
    assert [json.loads(line)["kind"] for line in process[1].splitlines()].count("succeeded") == 1
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.width, stream.height, len(frames), stream.average_rate) == (128, 128, 17, 32)


async def test_a_refusal_of_the_server_names_the_option(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"not a picture")
    code, _, complaint = await rushes(suite, tmp_path, "generate", PROMPT, "--logo", "logo.png")

    assert code == 2
    assert "--logo (spec.finish.logo.image): must be a PNG, JPEG or WebP picture" in complaint
    assert os.listdir(tmp_path) == ["logo.png"]  # noqa: PTH208


async def test_the_settings_in_force_are_repeated(client: Client) -> None:
    spec = generation_spec(PROMPT, **SHORT, finish=finish_plan(watermark_id=7))  # type: ignore[arg-type]
    ended = await client.wait((await client.create(spec)).id)

    assert ended.state == GenerationState.GENERATION_STATE_SUCCEEDED
    assert ended.spec.video.crf == 18
    assert ended.spec.finish.watermark_id == 7


async def test_every_file_of_a_clip_is_listed_and_read_by_its_name(client: Client, tmp_path: Path) -> None:
    spec = generation_spec(PROMPT, **SHORT, artifacts=["sprite"])  # type: ignore[arg-type]
    ended = await client.wait((await client.create(spec)).id)

    files = {file.name: file for file in ended.video.outputs}
    assert set(files) == {"clip.mp4", "sprite.jpg", "sprite.vtt"}
    assert (ended.video.sha256, ended.video.content_type) == (files["clip.mp4"].sha256, "video/mp4")
    for name, file in files.items():
        saved = await client.download(ended.id, tmp_path / name, output=name)
        data = (tmp_path / name).read_bytes()
        assert (saved.size_bytes, len(data)) == (file.size_bytes, file.size_bytes)
        assert hashlib.sha256(data).hexdigest() == file.sha256
    with pytest.raises(NotFound):
        await client.download(ended.id, tmp_path / "x", output="index.m3u8")
    with pytest.raises(NotFound):
        [piece async for piece in client.video(ended.id, output="../clip.mp4")]


async def test_the_command_line_writes_an_hls_folder_and_an_animated_picture(suite: Suite, tmp_path: Path) -> None:
    code, _, complaint = await rushes(
        suite,
        tmp_path,
        *("generate", PROMPT, "--width", "64", "--height", "64", "--frames", "9", "--steps", "2", "--seed", "5"),
        *("--fps", "32", "--codec", "h265", "--format", "hls", "--format", "gif", "-o", "clip.mp4"),
    )

    assert code == 0, complaint
    assert sorted(os.listdir(tmp_path)) == ["clip-hls", "clip.gif", "clip.mp4", "clip.png"]  # noqa: PTH208
    with av.open(str(tmp_path / "clip-hls" / "index.m3u8")) as container:
        assert len(list(container.decode(video=0))) == 17


@pytest.mark.skipif(chromium_program() is None, reason="there is no Chromium on this machine")
async def test_a_browser_plays_the_clip_while_its_fragments_are_still_arriving(
    suite: Suite, client: Client, tmp_path: Path
) -> None:
    video = video_settings(crf=0)
    spec = generation_spec(PROMPT, width=128, height=128, num_frames=49, steps=2, seed=5, video=video)
    ended = await client.wait((await client.create(spec)).id)
    # At this rate the clip takes about five seconds to arrive, and lasts three.
    rate = max(1, ended.video.size_bytes // 5 // 1024)
    async with edge(tmp_path, suite.address, kilobytes_per_second=rate) as endpoint, async_playwright() as playwright:
        with pages() as web:
            browser = await playwright.chromium.launch(
                executable_path=chromium_program(),
                args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
            )
            page = await browser.new_page()
            await page.goto(f"{web}/player.html?endpoint={endpoint}&generation={ended.id}")
            await page.wait_for_function("window.log?.ended", timeout=90_000)
            log = await page.evaluate("window.log")
            await page.wait_for_function("document.querySelector('video').ended", timeout=30_000)
            decoded = await page.evaluate("document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames")
            await browser.close()

    assert log["error"] is None
    arrivals = log["fragments"]
    assert arrivals[-1]["frames"] == 49
    assert arrivals[-1]["at"] - arrivals[0]["at"] > 1500
    playing = [arrival for arrival in arrivals[:-1] if arrival["time"] > 0.2 and arrival["decoded"] > 3]
    assert playing, "nothing was shown before the last fragment was there"
    assert playing[0]["frames"] < 33
    assert [arrival["time"] for arrival in playing] == sorted(arrival["time"] for arrival in playing)
    assert playing[-1]["time"] > playing[0]["time"]
    assert decoded == 49


async def test_frames_of_a_clip_are_read_as_pictures(suite: Suite, client: Client, tmp_path: Path) -> None:
    spec = generation_spec(PROMPT, **SHORT, finish=finish_plan(upscale=2))  # type: ignore[arg-type]
    ended = await client.wait((await client.create(spec)).id)
    clip = b"".join([piece async for piece in client.video(ended.id)])
    with av.open(io.BytesIO(clip)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    frames = [frame async for frame in client.frames(ended.id, first=3, count=4)]
    assert [frame.index for frame in frames] == [3, 4, 5, 6]
    assert [frame.seconds for frame in frames] == pytest.approx([index / 16 for index in (3, 4, 5, 6)])
    for frame in frames:
        picture = np.asarray(Image.open(io.BytesIO(frame.data)))
        assert np.array_equal(picture, expected[frame.index])
    assert len([frame async for frame in client.frames(ended.id, form="jpeg", max_edge=32)]) == 9
    with pytest.raises(OutOfRange):
        [frame async for frame in client.frames(ended.id, first=9)]

    code, _, complaint = await rushes(
        suite, tmp_path, "frames", ended.id, "--range", "7:99", "--out", "stills", "--format", "jpeg"
    )
    assert code == 0, complaint
    assert sorted(os.listdir(tmp_path / "stills")) == ["frame-000007.jpg", "frame-000008.jpg"]  # noqa: PTH208


async def rushes(suite: Suite, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of one command in a folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rushes.cli",
        *arguments,
        cwd=folder,
        env={**os.environ, "RUSHES_GATEWAY": suite.address, "RUSHES_STATE": str(folder / "state")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()
