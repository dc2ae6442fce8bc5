import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest

from services.postprocess.codecs import Effort, Rate
from services.postprocess.fragments import Fragment
from services.postprocess.frames import Frames, Pixels
from services.postprocess.mp4 import Encoding, Mp4Encoder

Draw = Callable[..., Pixels]


def _encode(pixels: Pixels, *, fps: Fraction = Fraction(16), encoding: Encoding | None = None) -> list[Fragment]:
    encoder = Mp4Encoder(
        width=pixels.shape[2], height=pixels.shape[1], fps=fps, encoding=encoding or Encoding(fragment_frames=4)
    )
    fragments = list(encoder.push(Frames(first=0, pixels=pixels[:1])))
    for first in range(1, len(pixels), 4):
        fragments += encoder.push(Frames(first=first, pixels=pixels[first : first + 4]))
    return [*fragments, *encoder.flush()]


def _file(fragments: list[Fragment]) -> bytes:
    return b"".join(fragment.data for fragment in fragments)


def _boxes(data: bytes) -> list[str]:
    kinds, offset = [], 0
    while offset < len(data):
        kinds.append(data[offset + 4 : offset + 8].decode())
        offset += int.from_bytes(data[offset : offset + 4], "big")
    return kinds


def _decode(data: bytes) -> Pixels:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_fragments_are_an_initialisation_segment_then_pairs_of_moof_and_mdat(moving_square: Draw) -> None:
    fragments = _encode(moving_square(17))

    assert _boxes(fragments[0].data) == ["ftyp", "moov"]
    assert all(_boxes(fragment.data) == ["moof", "mdat"] for fragment in fragments[1:])
    assert [fragment.index for fragment in fragments] == list(range(6))
    assert [(f.first_frame, f.frame_count) for f in fragments] == [(0, 0), (0, 4), (4, 4), (8, 4), (12, 4), (16, 1)]


def test_a_fragment_leaves_before_the_clip_is_finished(moving_square: Draw) -> None:
    encoder = Mp4Encoder(width=64, height=48, fps=Fraction(16), encoding=Encoding(fragment_frames=4))

    fragments = list(encoder.push(Frames(first=0, pixels=moving_square(5))))

    assert [fragment.frame_count for fragment in fragments] == [0, 4]
    assert len(_decode(_file(fragments))) == 4


@pytest.mark.parametrize("fps", [Fraction(16), Fraction(24), Fraction(60), Fraction(24000, 1001)])
def test_the_file_has_the_right_frames_size_rate_duration_and_colour_tags(moving_square: Draw, fps: Fraction) -> None:
    pixels = moving_square(17)

    with av.open(io.BytesIO(_file(_encode(pixels, fps=fps)))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        frames = list(container.decode(video=0))
        assert (context.width, context.height, context.name) == (64, 48, "h264")
        assert stream.average_rate == fps
        assert abs(stream.duration * stream.time_base - 17 / fps) < Fraction(1, 1000)
        assert [round(frame.pts * frame.time_base * fps) for frame in frames] == list(range(17))
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)


def test_colours_come_back_as_they_went_in() -> None:
    flat = np.empty((5, 32, 32, 3), np.uint8)
    for colour in ((200, 30, 40), (20, 180, 60), (10, 20, 220), (128, 128, 128), (255, 255, 255), (0, 0, 0)):
        flat[:] = colour

        back = _decode(_file(_encode(flat, encoding=Encoding(rate=Rate(crf=0)))))

        assert np.abs(back.astype(int) - flat).max() <= 3, colour


@pytest.mark.parametrize("effort", Effort)
def test_the_same_frames_give_the_same_bytes(moving_square: Draw, effort: Effort) -> None:
    encoding = Encoding(effort=effort)

    assert _file(_encode(moving_square(21), encoding=encoding)) == _file(_encode(moving_square(21), encoding=encoding))


@pytest.mark.parametrize("effort", Effort)
def test_every_effort_keeps_all_frames_in_order(moving_square: Draw, effort: Effort) -> None:
    pixels = moving_square(33)

    back = _decode(_file(_encode(pixels, encoding=Encoding(effort=effort))))

    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).mean() < 6


def test_a_higher_rate_factor_gives_a_smaller_file(moving_square: Draw) -> None:
    sizes = [len(_file(_encode(moving_square(17), encoding=Encoding(rate=Rate(crf=crf))))) for crf in (10, 23, 40)]

    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_single_frame_is_a_clip(moving_square: Draw) -> None:
    assert _decode(_file(_encode(moving_square(1)))).shape == (1, 48, 64, 3)


def test_the_content_type_names_the_profile_that_is_in_the_file(moving_square: Draw) -> None:
    encoder = Mp4Encoder(width=64, height=48, fps=Fraction(16), encoding=Encoding())
    data = _file([*encoder.push(Frames(first=0, pixels=moving_square(5))), *encoder.flush()])
    record = data.index(b"avcC") + 5

    assert encoder.content_type == f'video/mp4; codecs="avc1.{data[record : record + 3].hex()}"'


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (0, 48)])
def test_an_odd_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="even"):
        Mp4Encoder(width=size[0], height=size[1], fps=Fraction(16), encoding=Encoding())


def test_frames_of_another_size_are_refused(moving_square: Draw) -> None:
    encoder = Mp4Encoder(width=64, height=48, fps=Fraction(16), encoding=Encoding())

    with pytest.raises(ValueError, match="frames must be"):
        list(encoder.push(Frames(first=0, pixels=moving_square(1, width=48))))
