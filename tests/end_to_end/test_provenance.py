"""The whole command line on the embedded model: what it delivers says of itself what it should."""

import asyncio
import io
import json
import os
import stat
import sys
from pathlib import Path

import av
import c2pa
import pytest
from PIL import Image

from services.postprocess.c2pa_settings import library_settings

pytestmark = pytest.mark.timeout(900)

PROMPT = "a red circle moves left over the blue sea"


class CommandLine:
    """`rushes` in a folder of its own, its state beside it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.state = folder / "state"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUSHES_")}
        self._environment = {**kept, "RUSHES_STATE": str(self.state), "OMP_NUM_THREADS": "1"}

    async def __call__(self, *arguments: str, **environment: str) -> tuple[int, list[dict[str, object]], str]:
        """Exit status, the JSON lines, and what went to the error stream."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rushes.cli", *arguments, "--json"),
            cwd=self.work,
            env=self._environment | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, [json.loads(line) for line in out.splitlines()], err.decode()


async def test_the_command_line_marks_signs_and_describes_a_clip_and_verify_reads_it_back(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    (rushes.work / "file.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nHello\n", encoding="utf-8")
    Image.new("RGB", (64, 32), (20, 200, 30)).save(rushes.work / "logo.png")
    code, said, complaint = await rushes(
        *("generate", PROMPT, "--seed", "7", "--steps", "2", "--upscale", "2", "--fps", "32"),
        *("--watermark", "--watermark-id", "c0ffee005eed1234", "--label", "AI generated"),
        *("--subtitles", "file.srt", "--logo", "logo.png", "--format", "hls", "-o", "clip.mp4"),
    )
    assert code == 0, complaint
    made = next(line for line in said if line["kind"] == "succeeded")
    anchor, key = rushes.state / "c2pa" / "anchor.pem", rushes.state / "c2pa" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    code, (found,), complaint = await rushes("verify", "clip.mp4", "--trust", str(anchor))

    assert code == 0, complaint
    manifest, metadata = found["manifest"], found["metadata"]
    assert isinstance(manifest, dict)
    assert isinstance(metadata, dict)
    assert found["watermark"] == manifest["mark"] == "c0ffee005eed1234"
    assert (manifest["trust"], manifest["development"], manifest["problems"]) == ("trusted", True, [])
    assert (manifest["made"]["model"], manifest["made"]["seed"]) == ("rushes-tiny", "7")
    assert manifest["made"]["generation_id"] in json.dumps(made)
    assert metadata["source_type"].endswith("/trainedAlgorithmicMedia")
    assert metadata["aigc"]["ProduceID"] == manifest["made"]["produce_id"]
    data = (rushes.work / "clip.mp4").read_bytes()
    assert PROMPT.encode() not in data
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height, len(frames)) == (192, 192, 33)
    context = c2pa.Context(c2pa.Settings.from_dict(library_settings(anchor.read_text())))
    with context, c2pa.Reader("video/mp4", io.BytesIO(data), context=context) as reader:
        assert reader.get_validation_state() == "Trusted"

    # Segments leave one by one and carry no manifest; what is in the pictures and in the metadata is there.
    code, (found,), complaint = await rushes("verify", "clip-hls/index.m3u8")
    assert (code, found["watermark"], found["manifest"]) == (0, "c0ffee005eed1234", None), complaint
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["source_type"].endswith("/trainedAlgorithmicMedia")

    broken = bytearray(data)
    broken[broken.rindex(b"mdat") + 100] ^= 1
    (rushes.work / "broken.mp4").write_bytes(broken)
    code, (found,), _ = await rushes("verify", "broken.mp4")
    assert (code, found["verdict"]) == (5, "not_in_order")


async def test_an_operators_certificate_that_cannot_sign_stops_the_command_by_its_variable(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    nothing = str(tmp_path / "nothing.pem")

    code, said, _ = await rushes("generate", PROMPT, RUSHES_C2PA_CERTIFICATE=nothing, RUSHES_C2PA_KEY=nothing)

    assert code == 2
    assert "RUSHES_C2PA_CERTIFICATE: the file cannot be read" in str(said[-1]["message"])
    assert not (rushes.state / "c2pa").exists()
