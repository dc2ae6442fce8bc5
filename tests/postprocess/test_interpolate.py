from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest

from services.postprocess.frames import Frames, Pixels
from services.postprocess.interpolate import Interpolator, interpolated_count

Draw = Callable[..., Pixels]


def _texture(height: int, width: int, seed: int) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _moving_discs(count: int, *, seed: int, size: int = 96, per_frame: float = 0.5) -> Pixels:
    """A textured ground that pans, and textured discs that move across it, hide it and one another; anti-aliased."""
    random, scale = np.random.default_rng(seed), 2
    large = size * scale
    ground = _texture(large, 2 * large, seed)
    pan = random.uniform(-1, 1)
    discs = [
        (
            random.uniform(0.3, 0.7, 2) * size,
            random.uniform(-2, 2, 2),
            random.uniform(0.1, 0.2) * size,
            seed + 50 + index,
        )
        for index in range(3)
    ]
    frames = []
    for number in range(count):
        moment = number * per_frame
        shift = np.float32([[1, 0, -large / 2 + pan * moment * scale], [0, 1, 0]])
        frame = cv2.warpAffine(ground, shift, (large, large), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        for start, velocity, radius, texture_seed in discs:
            at = (start + velocity * moment) * scale
            texture = _texture(int(2 * radius * scale) + 4, int(2 * radius * scale) + 4, texture_seed)
            place = np.float32([[1, 0, at[0] - texture.shape[1] / 2], [0, 1, at[1] - texture.shape[0] / 2]])
            layer = cv2.warpAffine(texture, place, (large, large), flags=cv2.INTER_CUBIC)
            mask = np.zeros((large, large), np.uint8)
            centre = (round(at[0] * 16), round(at[1] * 16))
            cv2.circle(mask, centre, int(radius * scale * 16), 255, -1, cv2.LINE_AA, 4)
            share = mask[..., None] / 255
            frame = (frame * (1 - share) + layer * share).astype(np.uint8)
        frames.append(cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def _interpolated(pixels: Pixels, source: Fraction, target: Fraction, *, chunk: int = 4) -> Pixels:
    interpolator = Interpolator(source_fps=source, target_fps=target)
    items = [
        frames
        for first in range(0, len(pixels), chunk)
        for frames in interpolator.push(Frames(first=first, pixels=pixels[first : first + chunk]))
    ]
    items += interpolator.flush()
    assert [each.first for each in items] == list(np.cumsum([0, *(each.count for each in items[:-1])]))
    return np.concatenate([each.pixels for each in items])


def _psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("seed", range(3))
def test_in_between_frames_are_at_least_3_db_better_than_a_blend(seed: int) -> None:
    truth = _moving_discs(17, seed=seed)
    source = truth[::4]

    made = _interpolated(source, Fraction(16), Fraction(64))

    unseen = [index for index in range(17) if index % 4]
    share = {index: index % 4 / 4 for index in unseen}
    blends = {i: np.rint(source[i // 4] * (1 - share[i]) + source[i // 4 + 1] * share[i]) for i in unseen}
    gain = np.mean([_psnr(made[i], truth[i]) - _psnr(blends[i], truth[i]) for i in unseen])
    assert gain >= 3


@pytest.mark.parametrize(
    "target", [Fraction(24), Fraction(32), Fraction(48), Fraction(60), Fraction(24000, 1001), Fraction(8)]
)
def test_any_rational_rate_gives_every_moment_up_to_the_last_frame(moving_square: Draw, target: Fraction) -> None:
    pixels = moving_square(9)

    made = _interpolated(pixels, Fraction(16), target)

    count = interpolated_count(9, source_fps=Fraction(16), target_fps=target)
    assert len(made) == count
    assert (count - 1) / target <= Fraction(8, 16) < count / target
    for number in range(count):
        at = number * Fraction(16) / target
        if at.denominator == 1:
            assert np.array_equal(made[number], pixels[int(at)])


def test_a_square_that_moves_is_halfway_in_the_middle(moving_square: Draw) -> None:
    pixels = moving_square(3, width=96, height=64)

    made = _interpolated(pixels, Fraction(16), Fraction(32))

    yellow = made[1][:, :, 2] < 80
    columns = np.flatnonzero(yellow[20])
    assert abs(columns.mean() - (1 + 5.5)) < 1


def test_frames_are_not_mixed_across_a_cut(moving_square: Draw) -> None:
    before = moving_square(2)
    after = 255 - _texture(48, 64, 3)[None].repeat(2, 0) // 2

    made = _interpolated(np.concatenate([before, after]), Fraction(16), Fraction(64))

    assert np.array_equal(made[5], before[1])
    assert np.array_equal(made[6], after[0])
    assert np.array_equal(made[7], after[0])


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_the_chunks_do_not_matter(moving_square: Draw, chunk: int) -> None:
    pixels = moving_square(9)

    made = _interpolated(pixels, Fraction(16), Fraction(24), chunk=chunk)

    assert np.array_equal(made, _interpolated(pixels, Fraction(16), Fraction(24)))


def test_a_single_frame_stays_one_frame(moving_square: Draw) -> None:
    assert len(_interpolated(moving_square(1), Fraction(16), Fraction(60))) == 1
