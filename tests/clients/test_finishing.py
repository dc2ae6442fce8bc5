import re
from pathlib import Path
from typing import Any

import pytest

from rushes.cli.finishing import DeliveryOptions, FinishOptions, flags_named
from rushes.cli.label import label_default
from rushes.cli.refusal import CommandRefused
from rushes.client import FieldViolation, InvalidRequest
from rushes.v1.postprocess_pb2 import CONTAINER_WEBM, VIDEO_CODEC_VP9


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": "wide"}, "--size: must be WIDTHxHEIGHT"),
        ({"logo": Path("nowhere.png")}, "--logo: nowhere.png cannot be read: No such file"),
        ({"logo_width": 0.2}, "--logo-width: needs --logo"),
        ({"label_corner": "top-left"}, "--label-corner: needs --label"),
        ({"watermark_id": "xyz"}, "--watermark-id: must be up to 16 hexadecimal digits"),
        ({"fit": "squeeze"}, "--fit (finish.fit): must be one of crop, pad, stretch"),
        ({"fps": 2**40}, "--fps (finish.target_fps): must fit the field's type and range"),
    ],
)
def test_a_bad_option_is_refused_by_its_name_with_the_rule(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises((CommandRefused, InvalidRequest), match=re.escape(complaint)), flags_named():
        FinishOptions(**options).plan()


def test_a_file_of_subtitles_must_be_text_and_a_picture_must_not_be_huge(tmp_path: Path) -> None:
    (tmp_path / "latin.srt").write_bytes(b"\xe9\xe8")
    (tmp_path / "logo.png").write_bytes(bytes(2**20 + 1))

    with pytest.raises(CommandRefused, match=r"--subtitles: .*latin.srt must be text in UTF-8"):
        FinishOptions(subtitles=tmp_path / "latin.srt").plan()
    with pytest.raises(CommandRefused, match=r"--logo: .*logo.png must be at most 1 MiB"):
        FinishOptions(logo=tmp_path / "logo.png").plan()


def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(CommandRefused, match=r"--format: must be one of mp4.*, not avi"):
        DeliveryOptions(formats=["avi"]).video()


def test_formats_and_codecs_become_what_the_server_is_asked_for() -> None:
    plain = DeliveryOptions()
    assert (plain.wanted, plain.artifacts(), plain.video().codec) == (("mp4",), [], 0)
    webm = DeliveryOptions(formats=["webm", "gif"], bitrate="1.5M")
    assert (webm.video().codec, webm.video().container) == (VIDEO_CODEC_VP9, CONTAINER_WEBM)
    assert (webm.video().bits_per_second, webm.artifacts()) == (1_500_000, ["poster", "contact-sheet", "gif"])
    assert DeliveryOptions(codec="vp9").wanted == ("webm",)
    assert DeliveryOptions(codec="av1", formats=["hls"]).artifacts()[-1] == "hls"
    with pytest.raises(CommandRefused, match="--bitrate: must be bits a second"):
        DeliveryOptions(bitrate="fast").video()
    with pytest.raises(CommandRefused, match="--format: must be mp4 or webm, not both"):
        DeliveryOptions(formats=["mp4", "webm"]).video()


def test_a_field_without_an_option_keeps_its_own_name() -> None:
    violation = FieldViolation(field="spec.previews.max_edge", rule="must be at most 2048")
    with pytest.raises(InvalidRequest) as refused, flags_named():
        raise InvalidRequest("refused", violations=(violation,))
    assert refused.value.violations == (violation,)


def test_a_mark_is_drawn_unless_an_id_is_given() -> None:
    drawn = {FinishOptions(watermark=True).plan().watermark_id for _ in range(4)}

    assert len(drawn) == 4
    assert FinishOptions(watermark=True, watermark_id="0xFF").plan().watermark_id == 255
    assert not FinishOptions().plan().HasField("watermark_id")


def test_a_label_that_stands_alone_says_the_usual() -> None:
    assert label_default(["a", "--label"]) == ["a", "--label=AI generated"]
    assert label_default(["--label", "--fps", "32"]) == ["--label=AI generated", "--fps", "32"]
    assert label_default(["--label", "AI", "x"]) == ["--label", "AI", "x"]
