import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data
from skimage.metrics import structural_similarity

from services.postprocess.codecs import Rate
from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark import Marker
from services.postprocess.mark_code import BITS, identify, payload
from services.postprocess.mark_reading import read_mark
from services.postprocess.mp4 import Encoding, Mp4Encoder

MARK = 0xC0FFEE00_5EED1234

_PICTURES = Path(skimage.data.__file__).parent


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
    pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
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
        pytest.param(lambda frames: _re_encoded(_scaled(frames, 0.5), crf=28), id="half the size, encoded again"),
    ],
)
def test_the_id_survives_encoding_scaling_and_cropping(published: Pixels, change: Callable[[Pixels], Pixels]) -> None:
    assert read_mark(change(published)).mark_id == MARK


def test_the_id_survives_where_the_picture_moves_and_an_encoder_takes_the_mark_along() -> None:
    picture = cv2.cvtColor(cv2.imread(str(_PICTURES / "chelsea.png"), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    wide = cv2.resize(picture, (920, 612), interpolation=cv2.INTER_CUBIC)
    pan = np.stack([wide[60:540, 6 * n : 6 * n + 854] for n in range(8)])
    delivered = _re_encoded(_marked(pan), crf=18)

    assert read_mark(_re_encoded(delivered, crf=28)).mark_id == MARK
    assert read_mark(_re_encoded(_scaled(delivered, 0.5), crf=28)).mark_id == MARK


def _panned(name: str) -> Pixels:
    """A camera that pans over a photograph, four pixels a frame, as it is delivered with a mark."""
    picture = cv2.cvtColor(cv2.imread(str(_PICTURES / name), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    wide = cv2.resize(picture, (890, max(480, round(890 * picture.shape[0] / picture.shape[1]))))
    return _re_encoded(_marked(np.stack([wide[:480, 4 * n : 4 * n + 854] for n in range(5)])), crf=18)


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "brick.png", "gravel.png", "motorcycle_left.png"])
def test_the_id_survives_in_moving_photographs(name: str) -> None:
    delivered = _panned(name)

    for change in (delivered[:, 24:456, 42:812], delivered[:, :432, 85:], _scaled(delivered, 0.5)):
        reading = read_mark(_re_encoded(change, crf=28))
        assert reading.mark_id == MARK
        assert np.mean((reading.sums > 0) == payload(MARK)) >= 0.99


def test_the_id_survives_a_tenth_less_contrast_and_other_light() -> None:
    marked = _marked(_scene(1, seed=7))

    assert read_mark((marked * 0.9).astype(np.uint8)).mark_id == MARK
    assert read_mark(np.clip(marked.astype(int) + 20, 0, 255).astype(np.uint8)).mark_id == MARK


@pytest.mark.parametrize("level", [0, 16, 128, 255])
def test_even_pictures_without_a_mark_carry_none(level: int) -> None:
    assert read_mark(np.full((2, 240, 320, 3), level, np.uint8)).mark_id is None


@pytest.mark.parametrize("crf", [18, 28])
def test_a_clip_without_a_mark_carries_none(crf: int) -> None:
    assert read_mark(_re_encoded(_scene(5, seed=2), crf=crf)).mark_id is None


def test_a_mark_that_is_damaged_too_much_is_none_and_never_another() -> None:
    random = np.random.default_rng(5)
    marked = _marked(_scene(3, seed=4))
    noisy = (marked + random.normal(0, 120, marked.shape)).clip(0, 255).astype(np.uint8)

    for damaged in (_scaled(noisy, 0.25), _scaled(marked, 0.1)):
        assert read_mark(_re_encoded(damaged, crf=45)).mark_id is None


def test_the_check_tells_an_id_from_chance_and_mends_a_few_bits() -> None:
    random = np.random.default_rng(6)
    clear = np.where(payload(MARK), 50.0, -50.0).astype(np.float32)
    assert all(identify(random.normal(0, 50, BITS).astype(np.float32)) is None for _ in range(500))
    for wrong in range(1, 5):
        sums = clear + random.normal(0, 5, BITS).astype(np.float32)
        places = random.choice(BITS, wrong, replace=False)
        sums[places] *= -0.1
        assert identify(sums) == MARK
    clear[:8] *= -1
    assert identify(clear) is None


def test_every_id_has_its_own_check() -> None:
    assert {sum(payload(one) != payload(one ^ 1 << bit)) > 1 for one in (0, MARK) for bit in range(64)} == {True}
    assert identify(np.where(payload(2**64 - 1), 1.0, -1.0).astype(np.float32)) == 2**64 - 1
    assert identify(np.where(payload(0), 1.0, -1.0).astype(np.float32)) == 0


def test_the_mark_is_not_to_be_seen() -> None:
    pixels = _scene(2, seed=3)
    even = np.full((1, 480, 854, 3), 128, np.uint8)

    for pictures, least in ((pixels, 42), (even, 42)):
        difference = _marked(pictures).astype(int) - pictures
        assert 10 * np.log10(255**2 / np.mean(difference**2)) > least
    assert structural_similarity(_marked(pixels)[0], pixels[0], channel_axis=2) > 0.97


def test_black_and_white_pictures_stay_in_range() -> None:
    pixels = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 255)])

    assert np.abs(_marked(pixels).astype(int) - pixels).max() < 24


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        read_mark([])
