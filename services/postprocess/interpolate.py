"""Stage `interpolate`: in-between frames by optical flow, to any rational frame rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.frames import Frames, Pixels

Field = npt.NDArray[np.float32]

_INVERSION_STEPS = 3
_FINEST_PIXELS = 2**16
_FINE_PIXELS = 2**19
_CUT_RESIDUAL = 24.0
_CUT_CORRELATION = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """The motion between two neighbouring frames: flows [h, w, 2] in pixels, forwards and backwards.

    `cut` is true where the second frame is not the first one moved on.
    """

    forward: Field
    backward: Field
    cut: bool


class Interpolator:
    """Frames at `source_fps` to frames at `target_fps`; those that fall on a source frame are that frame, bit for bit.

    The last frame given is the last that lies between two source frames: nothing is extrapolated. It holds one source
    frame.
    """

    name = "interpolate"

    def __init__(self, *, source_fps: Fraction, target_fps: Fraction) -> None:
        self._step = source_fps / target_fps
        self._flow: cv2.DISOpticalFlow | None = None
        self._last: Pixels | None = None
        self._given = 0

    def push(self, item: Frames) -> Iterator[Frames]:
        """The frames that lie before or on the last of these."""
        for offset, picture in enumerate(item.pixels):
            between = list(self._up_to(item.first + offset, picture))
            self._last = picture
            if between:
                yield Frames(first=self._given, pixels=np.stack(between))
                self._given += len(between)

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _up_to(self, index: int, picture: Pixels) -> Iterator[Pixels]:
        motion: Motion | None = None
        number = self._given
        while (at := number * self._step) <= index:
            share = float(at - (index - 1))
            if share == 1 or self._last is None:
                yield picture
            elif share == 0:
                yield self._last
            else:
                self._flow = self._flow or flow_for(picture)
                motion = motion or estimate_motion(self._flow, self._last, picture)
                yield between(self._last, picture, motion, share)
            number += 1


def interpolated_count(frames: int, *, source_fps: Fraction, target_fps: Fraction) -> int:
    """How many frames an `Interpolator` makes of `frames` source frames."""
    return int((frames - 1) * target_fps / source_fps) + 1


def estimate_motion(flow: cv2.DISOpticalFlow, first: Pixels, second: Pixels) -> Motion:
    """The motion from `first` to `second` (Kroeger et al., ECCV 2016), and whether there is a cut between them."""
    before, after = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second))
    forward, backward = (
        flow.calc(*pair, None)  # type: ignore[call-overload]  # the stub forgets that None makes a new field
        for pair in ((before, after), (after, before))
    )
    residual = float(cv2.absdiff(before, cv2.remap(after, *_at(forward, 1.0), cv2.INTER_LINEAR)).mean())
    light_before, light_after = (cv2.calcHist([gray], [0], None, [32], [0, 256]) for gray in (before, after))
    alike = cv2.compareHist(light_before, light_after, cv2.HISTCMP_CORREL)
    return Motion(forward=forward, backward=backward, cut=residual > _CUT_RESIDUAL and alike < _CUT_CORRELATION)


def between(first: Pixels, second: Pixels, motion: Motion, share: float) -> Pixels:
    """The picture at `share` (0 to 1) of the way from `first` to `second`; across a cut the nearer of the two.

    Both flows are brought to the moment in between by fixed-point inversion, u_t(x) = u(x - s u_t(x)), and each gives a
    picture from both sides. Where the sides of one flow disagree, it points at something that is hidden on one side:
    there the other flow counts.
    """
    if motion.cut:
        return first if share < 0.5 else second
    forward, backward = _inverted(motion.forward, share), _inverted(motion.backward, 1 - share)
    total = np.zeros(first.shape, np.float32)
    weights = np.zeros(first.shape[:2], np.float32)
    for before, after in (
        (_warped(first, forward, -share), _warped(second, forward, 1 - share)),
        (_warped(first, backward, share), _warped(second, backward, share - 1)),
    ):
        gap = cv2.blur(cv2.cvtColor(cv2.absdiff(before, after), cv2.COLOR_RGB2GRAY), (5, 5)).astype(np.float32)
        weight = 1 / (gap * gap + 1)
        total += weight[..., None] * cv2.addWeighted(before, 1 - share, after, share, 0, dtype=cv2.CV_32F)
        weights += weight
    return np.clip(np.rint(total / weights[..., None]), 0, 255).astype(np.uint8)


def flow_for(picture: Pixels) -> cv2.DISOpticalFlow:
    """Dense inverse search, as fine as the pictures' size allows: every pixel of small ones, fewer of large ones."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pixels = picture.shape[0] * picture.shape[1]
    flow.setFinestScale(0 if pixels <= _FINEST_PIXELS else 1 if pixels <= _FINE_PIXELS else 2)
    return flow


def _inverted(flow: Field, share: float) -> Field:
    moved = flow
    for _ in range(_INVERSION_STEPS):
        moved = _warped(flow, moved, -share)
    return moved


def _warped(picture: npt.NDArray[Any], flow: Field, scale: float) -> npt.NDArray[Any]:
    return cv2.remap(picture, *_at(flow, scale), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _at(flow: Field, scale: float) -> tuple[Field, Field]:
    """Where every pixel comes from that moves by `scale` times `flow`."""
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + scale * flow[..., 0], rows + scale * flow[..., 1]
