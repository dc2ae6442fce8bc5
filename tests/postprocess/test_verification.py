"""`rushes verify` on files that were made here, and on what becomes of them."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from rushes.cli.refusal import CommandRefused
from rushes.cli.verifying import verify_file
from services.postprocess.claim import Claim
from services.postprocess.codecs import Codec
from services.postprocess.credentials import load_credentials
from services.postprocess.development import development_files
from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark import Marker
from services.postprocess.mp4 import Container, Encoding, Mp4Encoder
from services.postprocess.provenance import SOURCE_TYPE, Maker, Making, Origin
from services.postprocess.remux import remux
from services.postprocess.signing import Signer
from services.postprocess.verification import NotAVideo, verify
from tests.postprocess.certificates import Files, issue

MARK = 0xC0FFEE00_5EED1234
CLIP = "0123456789abcdef" * 2
MADE = Maker(producer="Studio", model="tiny", fingerprint="f00d")


def scene(count: int = 8, *, width: int = 480, height: int = 320) -> Pixels:
    """A textured ground that moves to the left."""
    random = np.random.default_rng(4)
    ground = np.zeros((height, 2 * width, 3), np.float32)
    for cell, share in ((120, 0.5), (40, 0.3), (12, 0.2)):
        coarse = random.integers(0, 256, (height // cell + 2, 2 * width // cell + 2, 3)).astype(np.float32)
        ground += share * cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([ground[:, 3 * n : 3 * n + width].clip(0, 255).astype(np.uint8) for n in range(count)])


def encoded(folder: Path, *, mark: int | None = MARK, codec: Codec = Codec.H264, container: Container) -> Path:
    """A finished file, and beside it its fragments as `stream.mp4`."""
    pixels = scene()
    if mark is not None:
        pixels = next(iter(Marker(mark).push(Frames(first=0, pixels=pixels)))).pixels
    encoding = dataclasses.replace(Encoding(), codec=codec, encoder="libvpx-vp9" if codec is Codec.VP9 else "libx264")
    encoder = Mp4Encoder(width=480, height=320, fps=Fraction(16), encoding=encoding)
    initial, *rest = [*encoder.push(Frames(first=0, pixels=pixels)), *encoder.flush()]
    origin, stream = Origin(producer="Studio", clip=CLIP), folder / "stream.mp4"
    stream.write_bytes(initial.data + origin.box() + b"".join(fragment.data for fragment in rest))
    finished = folder / f"clip{container.value[1]}"
    remux(stream, finished, container, origin)
    return finished


def sign(path: Path, files: Files, *, mark: int | None = MARK, clip: str = CLIP) -> None:
    credentials = load_credentials(files.certificate, files.key, None, now=datetime.now(UTC))
    making = Making(generation_id="one", seed=7, settings_sha256="5a" * 32)
    claim = Claim(maker=MADE, clip=clip, development=credentials.development, making=making, mark_id=mark)
    Signer(credentials).sign(path, "video/mp4", claim)


@pytest.fixture
def operator(tmp_path: Path) -> Files:
    return issue(tmp_path / "operator")


@pytest.fixture
def signed(tmp_path: Path, operator: Files) -> Path:
    path = encoded(tmp_path, container=Container.MP4)
    sign(path, operator)
    return path


def test_a_whole_file_is_in_order_and_everything_is_read_back(signed: Path, operator: Files) -> None:
    found = verify(signed, operator.anchor.read_text())

    assert (found.problems, found.notes) == ((), ())
    assert found.mark.mark_id == MARK
    assert found.manifest is not None
    assert (found.manifest.trust.value, found.manifest.signer) == ("trusted", "Studio Signer")
    assert found.manifest.mark == f"{MARK:016x}"
    assert found.manifest.made == {
        "producer": "Studio",
        "produce_id": CLIP,
        "model": "tiny",
        "model_fingerprint": "f00d",
        "certificate": "operator",
        "generation_id": "one",
        "seed": "7",
        "settings_sha256": "5a" * 32,
    }
    assert found.declarations.source_type == SOURCE_TYPE == found.manifest.source_type
    assert found.declarations.aigc is not None
    assert found.declarations.aigc["ContentProducer"] == "Studio"


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"mdat") + 40] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def with_another_origin(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"trainedAlgorithmicMedia</", b"digitalCapture         </"))


def with_a_hole_in_the_manifest(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"c2pa.assertions")
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flipped, "bytes of the file were changed after it was signed"),
        (cut_short, "bytes of the file were changed after it was signed"),
        (with_another_origin, "XMP names another source than a trained model, and the AIGC field does not"),
        (with_a_hole_in_the_manifest, "the manifest, or the structure of the file around it, is damaged"),
    ],
)
def test_what_was_changed_is_found(
    signed: Path, change: Callable[[Path], None], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(signed)

    assert problem in verify(signed).problems
    assert verify_file(signed, None, as_json=False) == 5
    assert "verdict    not in order" in capsys.readouterr().out


def test_a_manifest_about_another_clip_is_found(tmp_path: Path, operator: Files) -> None:
    path = encoded(tmp_path, container=Container.MP4)
    sign(path, operator, mark=MARK + 1, clip="f" * 32)

    assert verify(path).problems == (
        f"the manifest is about a clip with the watermark {MARK + 1:016x}",
        "the AIGC field and the manifest are about different clips",
    )


def test_a_mark_that_the_manifest_names_and_the_pictures_do_not_show_is_noted(tmp_path: Path, operator: Files) -> None:
    path = encoded(tmp_path, mark=None, container=Container.MP4)
    sign(path, operator)

    found = verify(path, operator.anchor.read_text())

    assert (found.problems, len(found.notes)) == ((), 1)
    assert "which the pictures no longer show" in found.notes[0]


def test_a_signer_that_no_named_authority_vouches_for_is_a_problem(signed: Path, tmp_path: Path) -> None:
    stranger = issue(tmp_path / "stranger")

    assert (
        "none of the trusted authorities vouches for the signer" in verify(signed, stranger.anchor.read_text()).problems
    )
    assert verify(signed).problems == ()
    assert verify_file(signed, stranger.anchor, as_json=False) == 5


def test_a_development_certificate_is_named(tmp_path: Path) -> None:
    path, files = encoded(tmp_path, container=Container.MP4), development_files(tmp_path / "c2pa")
    sign(path, Files(certificate=files.certificate, key=files.key, anchor=files.anchor))

    found = verify(path, files.anchor.read_text())

    assert found.manifest is not None
    assert (found.manifest.development, found.problems) == (True, ())
    assert found.notes == ("a development certificate: nobody vouches for the signer",)


def test_fragments_and_webm_have_watermark_and_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    webm = encoded(tmp_path, codec=Codec.VP9, container=Container.WEBM)

    for path, source in ((tmp_path / "stream.mp4", SOURCE_TYPE), (webm, "")):
        found = verify(path)
        assert (found.mark.mark_id, found.manifest, found.problems) == (MARK, None, ())
        assert found.declarations.source_type == source
        assert found.declarations.aigc is not None
        assert verify_file(path, None, as_json=True) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in said] == ["in_order", "in_order"]
    assert [one["watermark"] for one in said] == [f"{MARK:016x}"] * 2


def test_a_clip_that_says_nothing_is_told_from_one_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Mp4Encoder(width=480, height=320, fps=Fraction(16), encoding=Encoding())
    pieces = [*encoder.push(Frames(first=0, pixels=scene())), *encoder.flush()]
    (tmp_path / "plain.mp4").write_bytes(b"".join(piece.data for piece in pieces))

    assert verify_file(tmp_path / "plain.mp4", None, as_json=False) == 6
    assert "verdict    says nothing of its origin" in capsys.readouterr().out


def test_what_a_file_says_cannot_steer_the_terminal(
    tmp_path: Path, operator: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encoded(tmp_path, container=Container.MP4)
    sign(path, operator, clip="\x1b[2J[red]")

    verify_file(path, None, as_json=False)

    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "[2J[red]" in said


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("missing.mp4", None, "cannot be read: No such file or directory"),
        ("text.mp4", b"this is no video at all", "is not a video that can be decoded"),
        ("empty.mp4", b"", "is not a video that can be decoded"),
        ("picture.gif", b"GIF89a", "is not a video that can be decoded"),
    ],
)
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, name: str, content: bytes | None, rule: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(CommandRefused) as refused:
        verify_file(tmp_path / name, None, as_json=False)

    assert (refused.value.field, refused.value.code) == ("FILE", 2)
    assert rule in refused.value.rule


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandRefused, match="Is a directory"):
        verify_file(tmp_path, None, as_json=False)


@pytest.mark.parametrize("content", [None, b"nothing", b"\xff\xfe"])
def test_anchors_that_are_none_are_refused(signed: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "anchors.pem").write_bytes(content)

    with pytest.raises(CommandRefused) as refused:
        verify_file(signed, tmp_path / "anchors.pem", as_json=False)

    assert refused.value.field == "--trust"


def test_only_a_playlist_s_own_folder_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "index.m3u8").write_text('#EXTM3U\n#EXT-X-MAP:URI="../stream.mp4"\n')

    with pytest.raises(NotAVideo):
        verify(tmp_path / "index.m3u8")


def test_verifying_does_without_torch_and_without_the_services(signed: Path) -> None:
    code = "import sys\nfrom rushes.cli.verifying import verify_file\nfrom pathlib import Path\n"
    code += "ended = verify_file(Path(sys.argv[1]), None, as_json=True)\n"
    code += "heavy = {'torch', 'diffusers', 'transformers', 'structlog', 'pydantic'} & set(sys.modules)\n"
    code += "sys.exit(repr(heavy) if heavy else ended)"

    ended = subprocess.run([sys.executable, "-c", code, str(signed)], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_machine_without_the_extra_is_told_how_to_get_it(signed: Path) -> None:
    code = "import sys\nsys.modules['av'] = None\nfrom rushes.cli.__main__ import main\n"
    code += "sys.argv = ['rushes', 'verify', sys.argv[1]]\nmain()"

    ended = subprocess.run([sys.executable, "-c", code, str(signed)], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "verify: needs av: pip install 'rushes[verify]'" in ended.stderr
