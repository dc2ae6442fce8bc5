"""Adjustments, loops and shapes of delivery."""

from fractions import Fraction

import numpy as np
import pytest

from rushes.v1 import finishing_pb2
from services.chassis.errors import InvalidRequest
from services.postprocess.adjust import Adjuster, Adjustments
from services.postprocess.frames import Frames, Pixels
from services.postprocess.loop import Looper
from services.postprocess.orders import plan_rendering
from tests.postprocess.calls import start_request


def flat(*colour: int) -> Pixels:
    return np.full((8, 8, 3), colour, np.uint8)


def adjusted(picture: Pixels, **settings: float) -> Pixels:
    return Adjuster(Adjustments(**settings)).adjusted(picture[None])[0]


def test_adjustments_that_change_nothing_keep_every_value() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(4, axis=0)

    assert np.array_equal(adjusted(ramp), ramp)


def test_light_colour_and_sharpness_move_the_way_they_say() -> None:
    assert adjusted(flat(100, 100, 100), brightness=0.2)[0, 0].tolist() == [151] * 3
    assert adjusted(flat(200, 200, 200), contrast=2)[0, 0].tolist() == [255] * 3
    assert adjusted(flat(64, 64, 64), gamma=2)[0, 0].tolist() == [128] * 3
    grey = adjusted(flat(200, 40, 40), saturation=0)[0, 0]
    assert grey.min() == grey.max()
    strong = adjusted(flat(160, 120, 120), saturation=2)[0, 0]
    assert int(strong[0]) - int(strong[1]) == pytest.approx(80, abs=2)
    edge = np.concatenate([np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 160, np.uint8)], axis=1)
    assert np.ptp(adjusted(edge, sharpness=1)) > np.ptp(edge)


def looped(total: int, overlap: int) -> list[tuple[int, int]]:
    looper = Looper(total=total, overlap=overlap)
    pixels = np.arange(total, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3) * 10
    items = [Frames(first=0, pixels=pixels[:1])]
    items += [Frames(first=first, pixels=pixels[first : first + 4]) for first in range(1, total, 4)]
    given = [frames for item in items for frames in looper.push(item)] + list(looper.flush())
    return [
        (frames.first + index, int(picture[0, 0, 0])) for frames in given for index, picture in enumerate(frames.pixels)
    ]


def test_the_end_of_a_loop_dissolves_into_its_beginning_in_order_and_without_a_gap() -> None:
    made = looped(17, 3)

    assert [index for index, _ in made] == list(range(14))
    values = [value for _, value in made]
    assert values[:11] == [10 * frame for frame in range(3, 14)]
    assert values[11:] == [
        round(140 * 3 / 4 + 0 / 4),
        round(150 * 2 / 4 + 10 * 2 / 4),
        round(160 / 4 + 20 * 3 / 4),
    ]


def test_a_loop_of_more_than_half_the_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8 frames"):
        Looper(total=17, overlap=9)
    with pytest.raises(InvalidRequest, match=r"start.finish.loop_seconds: must be at most 0.25"):
        plan_rendering(order(loop_seconds=0.4), fps=Fraction(16))
    assert plan_rendering(order(loop_seconds=0.25), fps=Fraction(16)).finished_frames == 5


def order(**finish: object) -> object:
    return start_request(b"", finish=finishing_pb2.FinishPlan(**finish)).start


@pytest.mark.parametrize(
    ("aspect", "fit", "size"),
    [
        (finishing_pb2.ASPECT_16_9, finishing_pb2.FIT_CROP, (64, 36)),
        (finishing_pb2.ASPECT_9_16, finishing_pb2.FIT_CROP, (26, 48)),
        (finishing_pb2.ASPECT_1_1, finishing_pb2.FIT_CROP, (48, 48)),
        (finishing_pb2.ASPECT_1_1, finishing_pb2.FIT_PAD, (64, 64)),
        (finishing_pb2.ASPECT_4_5, finishing_pb2.FIT_CROP, (38, 48)),
        (finishing_pb2.ASPECT_4_5, finishing_pb2.FIT_PAD, (64, 80)),
    ],
)
def test_a_shape_of_delivery_crops_the_least_or_holds_the_whole(aspect: int, fit: int, size: tuple[int, int]) -> None:
    plan = plan_rendering(order(aspect=aspect, fit=fit), fps=Fraction(16))

    assert (plan.finish.width, plan.finish.height) == size
    with pytest.raises(InvalidRequest, match=r"start.finish.aspect: must not be set"):
        plan_rendering(order(aspect=aspect, width=64, height=64), fps=Fraction(16))
