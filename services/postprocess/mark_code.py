"""The code of the invisible mark: which coefficients carry which bit, and the check by which a reader knows an id.

Improved spread spectrum (Malvar and Florêncio, IEEE Transactions on Signal Processing 51, 2003) in the DCT of the luma,
brought to a canvas of 256 x 256 so that size and shape of the picture do not matter. Each bit owns a set of
coefficients of middle frequency, whose signed sum is moved beyond plus or minus `STRENGTH`, whatever the picture has
there. One more set, always the same, is the sync: it tells a reader that there is a mark, and where a cropped picture
belongs on the canvas. 32 of the bits are a check (CRC-32) of the 64 others.
"""

import zlib
from itertools import combinations, product
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

ID_BITS: Final = 64
CHECK_BITS: Final = 32
BITS: Final = ID_BITS + CHECK_BITS
CANVAS: Final = 256
STRENGTH: Final = 40.0
SYNC_STRENGTH: Final = 240.0

_BAND: Final = (14, 84)
_SEED: Final = 0x52757368
_SYNC_SHARE: Final = 0.25
_DOUBTFUL: Final = 14
_TURNED: Final = 4

Canvas = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.float32]


def payload(mark_id: int) -> Bits:
    """The bits that carry an id, [96]: its own, lowest first, and those of its check."""
    spelled = _spelled(mark_id)
    return np.array([spelled >> bit & 1 for bit in range(BITS)], bool)


def identify(sums: Sums) -> int | None:
    """The id that the sums of the bits, [96], spell with a check that is right; None where there is none.

    Up to four of the fourteen most doubtful bits may be wrong: 1,471 spellings are tried. By chance one of them passes
    the check of 32 bits in one reading of 2.9 million.
    """
    read = sum(1 << int(bit) for bit in np.flatnonzero(sums > 0))
    doubtful = [1 << int(bit) for bit in np.argsort(np.abs(sums))[:_DOUBTFUL]]
    for count in range(_TURNED + 1):
        for turned in combinations(doubtful, count):
            spelled = read ^ sum(turned)
            mark_id = spelled & (1 << ID_BITS) - 1
            if _spelled(mark_id) == spelled:
                return mark_id
    return None


def _spelled(mark_id: int) -> int:
    return zlib.crc32(mark_id.to_bytes(8, "big")) << ID_BITS | mark_id


class Code:
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
        self._sync = np.zeros((CANVAS, CANVAS), np.float32)
        self._sync[sync[:, 0], sync[:, 1]] = random.choice([-1, 1], size=len(sync)) / np.sqrt(len(sync))
        self.sync_spectrum = np.fft.rfft2(cv2.idct(self._sync))

    def change(self, canvas: Canvas, bits: Bits) -> Canvas:
        """What to add to `canvas` so that it carries `bits`."""
        coefficients = cv2.dct(canvas)
        change = np.zeros_like(canvas)
        sums = (coefficients[self._at] * self._signs).sum(axis=1)
        wanted = np.where(bits, np.maximum(sums, STRENGTH), np.minimum(sums, -STRENGTH))
        change[self._at] = self._signs * (wanted - sums)[:, None]
        synced = float((coefficients * self._sync).sum())
        change += self._sync * (max(synced, SYNC_STRENGTH) - synced)
        return np.asarray(cv2.idct(change), np.float32)

    def read(self, canvas: Canvas) -> tuple[Sums, float]:
        """The signed sum of each bit's coefficients, and that of the sync."""
        coefficients = cv2.dct(canvas)
        sums = (coefficients[self._at] * self._signs).sum(axis=1)
        return np.asarray(sums, np.float32), float((coefficients * self._sync).sum())
