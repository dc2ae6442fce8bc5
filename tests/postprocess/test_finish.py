import io
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from services.postprocess.finish import Finish, Finisher
from services.postprocess.fit import Fit, fitted
from services.postprocess.fonts import GlyphMissing, font_for
from services.postprocess.frames import Frames, Pixels
from services.postprocess.overlay import Corner, Label, Logo, label_overlay, logo_overlay, open_logo
from services.postprocess.subtitles import Cue, SubtitleInvalid, parse_subtitles
from services.postprocess.upscale import LanczosUpscaler

Draw = Callable[..., Pixels]
SRT = "1\n00:00:00,250 --> 00:00:00,750\n<i>Hello</i>\n\n2\n00:00:01,000 --> 00:00:01,500\nWorld\nagain\n"
WEBVTT = "WEBVTT - a title\n\nNOTE nothing\n\nfirst\n00:00.250 --> 00:00.750 align:start\nHello\n"


def _finished(pixels: Pixels, finish: Finish) -> Pixels:
    finisher = Finisher(finish, total=len(pixels), fps=Fraction(16))
    items = [each for i in range(len(pixels)) for each in finisher.push(Frames(first=i, pixels=pixels[i : i + 1]))]
    return np.concatenate([each.pixels for each in [*items, *finisher.flush()]])


def _gray(count: int, *, width: int = 96, height: int = 64, level: int = 120) -> Pixels:
    return np.full((count, height, width, 3), level, np.uint8)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(64, 64), (36, 64), (64, 36), (100, 80), (192, 128), (2, 2)])
@pytest.mark.parametrize("fit", Fit)
def test_every_fit_gives_the_exact_size(fit: Fit, size: tuple[int, int]) -> None:
    pictures = fitted(_gray(2), *size, fit)

    assert pictures.shape == (2, size[1], size[0], 3)


def test_crop_keeps_the_middle_and_pad_fills_with_black(moving_square: Draw) -> None:
    pictures = moving_square(3)

    cropped, padded = fitted(pictures, 48, 48, Fit.CROP), fitted(pictures, 64, 64, Fit.PAD)

    assert np.array_equal(cropped, pictures[:, :, 8:56])
    assert np.array_equal(padded[:, 8:56], pictures)
    assert not padded[:, :8].any()
    assert not padded[:, 56:].any()


def test_a_clip_that_fades_begins_and_ends_in_black() -> None:
    finished = _finished(_gray(17), Finish(width=96, height=64, fade_in=0.25, fade_out=0.5))

    light = finished[:, 0, 0, 0].tolist()
    assert light[:5] == [0, 30, 60, 90, 120]
    assert light[5:9] == [120] * 4
    assert light[-9:] == [120, 105, 90, 75, 60, 45, 30, 15, 0]


@pytest.mark.parametrize("corner", Corner)
def test_a_label_stands_in_its_corner_inside_the_safe_area_on_every_frame(corner: Corner) -> None:
    finish = Finish(width=320, height=180, label=Label(text="AI generated", corner=corner), fade_in=0.1)

    finished = _finished(_gray(3, width=320, height=180), finish)

    for frame, level in zip(finished, (0, 75, 120), strict=True):
        touched = (np.abs(frame.astype(int) - level) > 8).any(axis=2)
        rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        right, bottom = corner.value
        assert (columns.min() > 160) if right else (columns.max() < 160)
        assert (rows.min() > 90) if bottom else (rows.max() < 90)
        assert rows.min() >= 8
        assert rows.max() <= 171
        assert columns.min() >= 8
        assert columns.max() <= 311


def test_a_label_of_no_opacity_is_not_to_be_seen() -> None:
    finish = Finish(width=96, height=64, label=Label(text="AI", opacity=0))

    assert np.array_equal(_finished(_gray(1), finish), _gray(1))


def test_a_line_that_is_too_long_is_made_to_fit() -> None:
    overlay = label_overlay(Label(text="W" * 64), 96, 64)

    assert overlay.coverage.shape[1] <= 96 * 0.9 + 1


def test_a_logo_is_scaled_and_laid_over_with_its_transparency() -> None:
    image = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    logo = Logo(image=open_logo(_png(image)), corner=Corner.TOP_LEFT, width_share=0.25)

    finished = _finished(_gray(1, width=160, height=80), Finish(width=160, height=80, logo=logo))[0]

    assert logo_overlay(logo, 160, 80).coverage.shape == (20, 40, 1)
    assert finished[14, 10].tolist() == [120, 120, 120]
    assert finished[14, 36].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"GIF89a not a picture", "PNG, JPEG or WebP"),
        (b"", "PNG, JPEG or WebP"),
        (_png(Image.effect_noise((64, 64), 90))[:2000], "damaged"),
        (_png(Image.new("1", (5000, 4000))), "16 megapixels"),
        (_png(Image.new("1", (20000, 20000))), "damaged|megapixels"),
    ],
)
def test_a_logo_that_is_no_picture_or_a_bomb_is_refused(data: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        open_logo(data)


@pytest.mark.parametrize("text", [SRT, WEBVTT, SRT.replace("\n", "\r\n"), "\ufeff" + SRT])
def test_subrip_and_webvtt_are_read(text: str) -> None:
    assert parse_subtitles(text, duration=2.0)[0] == Cue(start=0.25, end=0.75, text="Hello")


def test_a_cue_of_several_lines_keeps_them() -> None:
    assert parse_subtitles(SRT, duration=2.0)[1].text == "World\nagain"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "no cues"),
        ("WEBVTT\n\n", "no cues"),
        ("1\n00:00:01,000 -> 00:00:02,000\nx\n", "line 1: a cue needs a line of timing"),
        ("1\n00:00:01 --> 00:00:02\nx\n", "line 2: is not of the form"),
        ("1\n00:00:02,000 --> 00:00:01,000\nx\n", "line 2: must end after it begins"),
        ("1\n00:00:03,000 --> 00:00:04,000\nx\n", "line 2: begins at 3 s, after the clip's 2 s"),
        ("1\n00:99:03,000 --> 00:00:04,000\nx\n", "line 2: is not of the form"),
        ("just words\n", "line 1"),
        ("1\n00:00:00,000 --> 00:00:01,000\nx\n\n" * 2001, "at most 2000"),
    ],
)
def test_a_malformed_subtitle_is_refused_with_its_line(text: str, rule: str) -> None:
    with pytest.raises(SubtitleInvalid, match=rule):
        parse_subtitles(text, duration=2.0)


def test_subtitles_are_on_show_from_their_start_until_their_end() -> None:
    finished = _finished(_gray(32), Finish(width=96, height=64, cues=parse_subtitles(SRT, duration=2.0)))

    shown = [bool((frame != 120).any()) for frame in finished]
    assert shown == [4 <= index < 12 or 16 <= index < 24 for index in range(32)]
    assert not (finished[5][:32] != 120).any()


def test_a_letter_that_no_font_has_is_named() -> None:
    with pytest.raises(GlyphMissing, match=r"\\U000f0000") as missing:
        font_for("a\U000f0000", 12)

    assert missing.value.letters == "\U000f0000"


def test_lanczos_enlarges_and_keeps_the_picture(moving_square: Draw) -> None:
    pixels = moving_square(2)

    (larger,) = LanczosUpscaler(2).push(Frames(first=3, pixels=pixels))

    assert (larger.first, larger.pixels.shape) == (3, (2, 96, 128, 3))
    back = larger.pixels.reshape(2, 48, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(back - pixels).mean() < 2
