import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from services.postprocess.frames import Frames, Pixels
from services.postprocess.stills import Still, StillTaker

Draw = Callable[..., Pixels]


def _taken(pixels: Pixels) -> StillTaker:
    taker = StillTaker(total=len(pixels))
    for first in range(len(pixels)):
        (passed,) = taker.push(Frames(first=first, pixels=pixels[first : first + 1]))
        assert np.shares_memory(passed.pixels, pixels)
    assert list(taker.flush()) == []
    return taker


def _open(still: Still | None) -> Image.Image:
    assert still is not None
    image = Image.open(io.BytesIO(still.data))
    assert (image.format, image.width, image.height) == (still.format, still.width, still.height)
    return image


def test_the_poster_is_the_middle_frame(moving_square: Draw) -> None:
    pixels = moving_square(17)

    poster = _open(_taken(pixels).poster)

    assert np.abs(np.asarray(poster).astype(int) - pixels[8]).mean() < 3


def test_the_contact_sheet_shows_first_and_last_frame_in_reading_order(moving_square: Draw) -> None:
    pixels = moving_square(33)

    sheet = np.asarray(_open(_taken(pixels).contact_sheet))

    assert sheet.shape == (3 * 48 + 2 * 4, 4 * 64 + 3 * 4, 3)
    assert np.array_equal(sheet[:48, :64], pixels[0])
    assert np.array_equal(sheet[-48:, -64:], pixels[32])


def test_a_short_clip_has_a_sheet_of_its_own_size(moving_square: Draw) -> None:
    assert _open(_taken(moving_square(1)).contact_sheet).size == (64, 48)
    assert _open(_taken(moving_square(5)).contact_sheet).size == (4 * 64 + 3 * 4, 2 * 48 + 4)


def test_the_worst_case_of_a_contact_sheet_fits_into_two_mebibytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), np.uint8)

    assert len(_taken(noise).contact_sheet.data) <= 2 * 2**20


def test_a_poster_of_a_large_clip_is_made_smaller() -> None:
    large = np.zeros((1, 720, 2560, 3), np.uint8)

    assert _open(_taken(large).poster).size == (1280, 360)


def test_only_what_is_wanted_is_made(moving_square: Draw) -> None:
    taker = StillTaker(total=5, poster=False, contact_sheet=True)
    list(taker.push(Frames(first=0, pixels=moving_square(5))))
    assert taker.contact_sheet is None

    list(taker.flush())

    assert taker.poster is None
    assert taker.contact_sheet is not None
