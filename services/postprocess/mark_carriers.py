"""Which waves carry what of the invisible mark, and how: quantised for the bits, added for the sync.

Each cell of the canvas has one chip: a signed sum of seven of its waves, moved to the nearest point of a lattice,
of which every other point says that a coded bit is set (quantisation index modulation by spread transform: Chen and
Wornell, IEEE Transactions on Information Theory 47, 2001). So whatever a picture has there does not drown the bit, and
costs nothing. 312 coded bits have three chips or four each, far from one another.

Five finer waves carry the sync, a pattern that is always the same. It tells a reader where on the canvas a cropped
picture belongs.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from services.postprocess.mark_basis import CANVAS, CELLS, WAVES, Matrix, whole
from services.postprocess.mark_code import BITS, Bits, Sums
from services.postprocess.mark_trellis import coded_length, recover

STEPS: Final = (48.0, 68.0, 84.0)
"""How far the points of the lattice for one bit lie apart: for even ground, for texture, for the strongest of it."""

_SYNC: Final = 5.0
_SEED: Final = 0x52757368
_CHIP_WAVES: Final = (0.8, 3.0)
_SYNC_WAVES: Final = (3.4, 3.9)

Cells = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chips:
    """What one picture says by one step: `values` from -1 to 1, [CELLS, CELLS], 0 where there is none.

    `agreement` is how near they lie to the lattice: 1 upon it, around 0 by chance; `sureness` is the same in standard
    deviations of chance.
    """

    values: Matrix
    agreement: float
    sureness: float


class Carriers:
    """The layout of the mark, the same in every process."""

    def __init__(self) -> None:
        random = np.random.default_rng(_SEED)
        waves = list(product(range(WAVES), repeat=2))
        radii = [np.hypot(down + 0.5, across + 0.5) for down, across in waves]
        signs = random.choice(np.array([-1, 1], np.float32), (CELLS, WAVES, CELLS, WAVES))
        chip, sync = (
            np.array([low <= radius < high for radius in radii]).reshape(1, WAVES, 1, WAVES)
            for low, high in (_CHIP_WAVES, _SYNC_WAVES)
        )
        self._chip = np.asarray(signs * chip / np.sqrt(chip.sum()), np.float32)
        edge = CELLS * WAVES
        self._sync = np.asarray((signs * sync / (CELLS * np.sqrt(sync.sum()))).reshape(edge, edge), np.float32)
        count = coded_length(BITS)
        self._order = random.permutation(np.arange(CELLS * CELLS) % count).reshape(CELLS, CELLS)

    @cached_property
    def pattern(self) -> Matrix:
        """The sync as a picture, one unit a pixel, [CANVAS, CANVAS]."""
        canvas = whole(CANVAS)
        return np.asarray(canvas.T @ self._sync @ canvas, np.float32)

    def change(self, coefficients: Matrix, coded: Bits, step: float) -> Matrix:
        """What to add to a picture's coefficients so that it carries the `coded` bits, [312]."""
        sums = self._sums(coefficients)
        offsets = np.where(coded[self._order], step / 4, -step / 4)
        moved = np.rint((sums - offsets) / step) * step + offsets - sums
        change = (self._chip * moved[:, None, :, None]).reshape(coefficients.shape)
        return np.asarray(change + self._sync * max(0.0, _SYNC * step - self.synced(coefficients)), np.float32)

    def chips(self, coefficients: Matrix, seen: Cells, step: float) -> Chips:
        """What the cells that are `seen`, [CELLS, CELLS], say, if the mark was made by `step`."""
        phases = 2 * np.pi / step * self._sums(coefficients)
        count = int(seen.sum())
        agreement = -float(np.cos(2 * phases[seen]).mean()) if count else 0.0
        values = np.asarray(np.where(seen, np.sin(phases), 0), np.float32)
        return Chips(values=values, agreement=agreement, sureness=agreement * float(np.sqrt(2 * count)))

    def synced(self, coefficients: Matrix) -> float:
        """How much of the sync there is."""
        return float((coefficients * self._sync).sum())

    def sureness(self, coefficients: Matrix) -> float:
        """How far the sync stands out of chance, in standard deviations of what the picture has there."""
        return self.synced(coefficients) / max(float(np.sqrt((coefficients[self._sync != 0] ** 2).mean())), 1e-6)

    def bits(self, values: Matrix) -> Sums:
        """How much the values of chips, [CELLS, CELLS], speak for each bit, [96]."""
        coded = np.bincount(self._order.ravel(), values.ravel(), coded_length(BITS))
        return recover(coded.astype(np.float32))

    def _sums(self, coefficients: Matrix) -> Matrix:
        cells = coefficients.reshape(CELLS, WAVES, CELLS, WAVES) * self._chip
        return np.asarray(cells.sum(axis=(1, 3)), np.float32)


@cache
def carriers() -> Carriers:
    """The layout, made once: it holds nothing of a clip."""
    return Carriers()
