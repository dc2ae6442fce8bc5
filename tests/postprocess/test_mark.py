import io
from collections.abc import Callable
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from services.postprocess.codecs import Rate
from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark import Marker, read_mark
from services.postprocess.mp4 import Encoding, Mp4Encoder

MARK = 0xC0FFEE00_5EED1234


def _scene(count: int, *, seed: int, width: int = 854, height: int = 480) -> Pixels:
    """A ground with the spectrum of a photograph, panned, and a disc that moves across it."""
    random = np.random.default_rng(seed)
    ground = np.zeros((height, 2 * width, 3), np.float32)
    for cell, share in ((160, 0.5), (64, 0.25), (24, 0.14), (10, 0.07), (4, 0.04)):
        coarse = random.integers(0, 256, (height // cell + 2, 2 * width // cell + 2, 3)).astype(np.float32)
        ground += share * cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    frames = []
    for index in range(count):
        frame = ground[:, index * 3 : index * 3 + width].clip(0, 255).astype(np.uint8)
        cv2.circle(frame, (width // 3 + index * 4, height // 2), height // 6, (230, 40, 60), -1, cv2.LINE_AA)
        frames.append(frame)
    return np.stack(frames)


def _marked(pixels: Pixels) -> Pixels:
    (frames,) = Marker(MARK).push(Frames(first=0, pixels=pixels))
    return frames.pixels


def _re_encoded(pixels: Pixels, *, crf: int) -> Pixels:
    encoder = Mp4Encoder(
        width=pixels.shape[2], height=pixels.shape[1], fps=Fraction(16), encoding=Encoding(rate=Rate(crf=crf))
    )
    fragments = [*encoder.push(Frames(first=0, pixels=pixels)), *encoder.flush()]
    with av.open(io.BytesIO(b"".join(fragment.data for fragment in fragments))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _scaled(pixels: Pixels, share: float) -> Pixels:
    kernel = cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, None, fx=share, fy=share, interpolation=kernel) for frame in pixels])


@pytest.fixture(scope="module")
def published() -> Pixels:
    """A marked clip as it comes out of a strong H.264 encode."""
    return _re_encoded(_marked(_scene(9, seed=1)), crf=28)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frames: frames, id="as it is"),
        pytest.param(lambda frames: _scaled(frames, 0.5), id="half the size"),
        pytest.param(lambda frames: _scaled(frames[:3], 2), id="twice the size"),
        pytest.param(lambda frames: frames[:, 24:456, 42:812], id="10 % off each edge pair"),
        pytest.param(lambda frames: frames[:, 48:, 85:], id="10 % off two edges"),
    ],
)
def test_the_id_survives_encoding_scaling_and_cropping(published: Pixels, change: Callable[[Pixels], Pixels]) -> None:
    reading = read_mark(change(published))

    assert reading.mark_id is not None
    assert (reading.mark_id ^ MARK).bit_count() == 0


def test_a_clip_without_a_mark_carries_none() -> None:
    reading = read_mark(_re_encoded(_scene(5, seed=2), crf=28))

    assert reading.mark_id is None
    assert reading.certainty < 5


def test_the_mark_is_not_to_be_seen() -> None:
    pixels = _scene(2, seed=3)

    difference = _marked(pixels).astype(int) - pixels

    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 42


def test_black_and_white_pictures_stay_in_range() -> None:
    pixels = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 255)])

    assert np.abs(_marked(pixels).astype(int) - pixels).max() < 24


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        read_mark([])
