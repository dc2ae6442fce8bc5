"""An invisible mark in every frame that carries a 64-bit id: stage `mark`, and reading it back.

Improved spread spectrum (Malvar and Florêncio, IEEE Transactions on Signal Processing 51, 2003) in the DCT of the luma,
brought to a canvas of 256 x 256 so that size and shape of the picture do not matter. Each bit owns a set of
coefficients of middle frequency, whose signed sum is moved beyond plus or minus `_STRENGTH`, whatever the picture has
there. One more set, always the same, is the sync: it tells a reader that there is a mark, and where a cropped picture
belongs on the canvas.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.postprocess.frames import Frames, Pixels

BITS: Final = 64

_CANVAS: Final = 256
_BAND: Final = (14, 84)
_SEED: Final = 0x52757368
_SYNC_SHARE: Final = 0.25
_STRENGTH: Final = 50.0
_SYNC_STRENGTH: Final = 200.0
_READ_EDGE: Final = 512
_SYNC_RADIUS: Final = (4, 32)
_LEAST_SHARE: Final = 0.89
_SHARE_STEP: Final = 0.01
_PRESENT: Final = 5.5
_PLAIN: Final = 7.5
_REFINEMENTS: Final = 6

Canvas = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What frames were found to carry; `mark_id` is None where there is no mark.

    `certainty` is how far the sync stands out of chance, in standard deviations of its correlation.
    """

    mark_id: int | None
    certainty: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a picture lies on the canvas: its size as shares of the canvas, its corner in canvas pixels."""

    across: float
    down: float
    left: float
    top: float

    def moved(self, across: float, down: float, left: float, top: float) -> "_Place":
        return _Place(across=self.across + across, down=self.down + down, left=self.left + left, top=self.top + top)


class _Code:
    """Which coefficients of the canvas belong to which bit, with which sign; the same in every process."""

    def __init__(self) -> None:
        random = np.random.default_rng(_SEED)
        low, high = _BAND
        cells = np.array([(i, j) for i, j in product(range(high), range(high)) if low**2 <= i * i + j * j < high**2])
        random.shuffle(cells)
        sync, rest = np.split(cells, [int(len(cells) * _SYNC_SHARE)])
        each = len(rest) // BITS
        owned = rest[: each * BITS].reshape(BITS, each, 2)
        self._at = owned[..., 0], owned[..., 1]
        weights = np.hypot(*self._at)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        self._signs = (random.choice([-1, 1], size=(BITS, each)) * weights).astype(np.float32)
        self._sync = np.zeros((_CANVAS, _CANVAS), np.float32)
        self._sync[sync[:, 0], sync[:, 1]] = random.choice([-1, 1], size=len(sync)) / np.sqrt(len(sync))
        self.sync_spectrum = np.fft.rfft2(cv2.idct(self._sync))

    def change(self, canvas: Canvas, bits: npt.NDArray[np.bool_]) -> Canvas:
        """What to add to `canvas` so that it carries `bits`."""
        coefficients = cv2.dct(canvas)
        change = np.zeros_like(canvas)
        sums = (coefficients[self._at] * self._signs).sum(axis=1)
        wanted = np.where(bits, np.maximum(sums, _STRENGTH), np.minimum(sums, -_STRENGTH))
        change[self._at] = self._signs * (wanted - sums)[:, None]
        synced = float((coefficients * self._sync).sum())
        change += self._sync * (max(synced, _SYNC_STRENGTH) - synced)
        return np.asarray(cv2.idct(change), np.float32)

    def read(self, canvas: Canvas) -> tuple[npt.NDArray[np.float32], float]:
        """The signed sum of each bit's coefficients, and that of the sync."""
        coefficients = cv2.dct(canvas)
        sums = (coefficients[self._at] * self._signs).sum(axis=1)
        return np.asarray(sums, np.float32), float((coefficients * self._sync).sum())


class Marker:
    """Marks every frame with `mark_id`, 0 to 2^64 - 1; it holds nothing of the clip."""

    name = "mark"

    def __init__(self, mark_id: int) -> None:
        self._bits = np.array([mark_id >> bit & 1 for bit in range(BITS)], bool)
        self._code = _Code()

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, marked."""
        yield Frames(first=item.first, pixels=np.stack([self._marked(picture) for picture in item.pixels]))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _marked(self, picture: Pixels) -> Pixels:
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        canvas = cv2.resize(luma, (_CANVAS, _CANVAS), interpolation=cv2.INTER_AREA)
        change = self._code.change(np.asarray(canvas, np.float32), self._bits)
        size = (picture.shape[1], picture.shape[0])
        spread = cv2.resize(change, size, interpolation=cv2.INTER_CUBIC)
        return np.clip(np.rint(picture + spread[..., None]), 0, 255).astype(np.uint8)


def read_mark(frames: Iterable[Pixels]) -> Reading:
    """The mark in pictures [h, w, 3] of one clip, whole or cropped. Raises `ValueError` when there are no pictures.

    The mark is the same in all frames and is read by sums, so one mean picture tells what a majority would.
    """
    mean = _mean_luma(frames)
    code = _Code()
    certainty, place = _located(mean, code)
    if certainty < _PRESENT:
        return Reading(mark_id=None, certainty=certainty)
    place = _refined(place, lambda at: _agreement(_placed(mean, at), code))
    sums, _ = code.read(_placed(mean, place))
    bits = sums > 0
    return Reading(mark_id=sum(1 << int(bit) for bit in np.flatnonzero(bits)), certainty=certainty)


def _mean_luma(frames: Iterable[Pixels]) -> Canvas:
    total: Canvas | None = None
    count = 0
    for picture in frames:
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        total = luma if total is None else total + luma
        count += 1
    if total is None:
        raise ValueError("there are no pictures to read")
    mean = np.asarray(total / count, np.float32)
    scale = _READ_EDGE / max(mean.shape)
    if scale < 1:
        mean = np.asarray(cv2.resize(mean, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)
    return mean


def _located(mean: Canvas, code: _Code) -> tuple[float, _Place]:
    """Where on the canvas `mean` lies, by phase correlation with the sync for every share that a crop may leave."""
    rows, columns = np.fft.fftfreq(_CANVAS)[:, None] * _CANVAS, np.fft.rfftfreq(_CANVAS)[None] * _CANVAS
    radius = np.hypot(rows, columns)
    band = (radius >= _SYNC_RADIUS[0]) & (radius <= _SYNC_RADIUS[1])
    shares = np.arange(1.0, _LEAST_SHARE - 1e-6, -_SHARE_STEP)
    best = (-np.inf, _Place(across=1.0, down=1.0, left=0.0, top=0.0))
    for across, down in product(shares, shares):
        width, height = round(_CANVAS * across), round(_CANVAS * down)
        reduced = cv2.resize(mean - mean.mean(), (width, height), interpolation=cv2.INTER_AREA)
        window = np.outer(np.hanning(height) ** 0.25, np.hanning(width) ** 0.25)
        spectrum = np.fft.rfft2(reduced * window, s=(_CANVAS, _CANVAS))
        phases = np.where(band, np.conj(spectrum) / (np.abs(spectrum) + 1e-3), 0)
        surface = np.fft.irfft2(phases * code.sync_spectrum, s=(_CANVAS, _CANVAS))
        allowed = surface[: _CANVAS - height + 1, : _CANVAS - width + 1]
        top, left = np.unravel_index(int(allowed.argmax()), allowed.shape)
        certainty = float(allowed[top, left] / surface.std())
        if certainty > best[0]:
            place = _Place(across=width / _CANVAS, down=height / _CANVAS, left=float(left), top=float(top))
            best = (certainty, place)
        if certainty > _PLAIN and across == down == 1:
            break
    return best


def _placed(mean: Canvas, place: _Place) -> Canvas:
    """`mean` on the canvas at `place`, its mean level around it."""
    size = (max(1, round(_CANVAS * place.across)), max(1, round(_CANVAS * place.down)))
    reduced = cv2.resize(mean, size, interpolation=cv2.INTER_AREA)
    scale_x, scale_y = _CANVAS * place.across / size[0], _CANVAS * place.down / size[1]
    # Pixel centres lie at halves, and OpenCV counts them from zero.
    shift = np.array(
        [[scale_x, 0, place.left + (scale_x - 1) / 2], [0, scale_y, place.top + (scale_y - 1) / 2]], np.float32
    )
    return np.asarray(
        cv2.warpAffine(
            reduced,
            shift,
            (_CANVAS, _CANVAS),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=float(mean.mean()),
        ),
        np.float32,
    )


def _agreement(canvas: Canvas, code: _Code) -> float:
    sums, synced = code.read(canvas)
    return float(np.minimum(np.abs(sums), _STRENGTH).sum()) + 4 * synced


def _refined(place: _Place, score: Callable[[_Place], float]) -> _Place:
    """The place near `place` with the best `score`, by moving one edge at a time in ever smaller steps."""
    best, best_score = place, score(place)
    step = 1.0
    for _ in range(_REFINEMENTS):
        improved = True
        while improved:
            improved = False
            for move in _moves(step):
                tried = best.moved(*move)
                tried_score = score(tried)
                if tried_score > best_score:
                    best, best_score, improved = tried, tried_score, True
        step /= 2
    return best


def _moves(step: float) -> Iterator[tuple[float, float, float, float]]:
    """Each edge of the picture outwards and inwards by `step` canvas pixels, and the whole picture to each side."""
    share = step / _CANVAS
    for sign in (1, -1):
        yield sign * share, 0, 0, 0
        yield 0, sign * share, 0, 0
        yield sign * share, 0, -sign * step, 0
        yield 0, sign * share, 0, -sign * step
        yield 0, 0, sign * step, 0
        yield 0, 0, 0, sign * step
