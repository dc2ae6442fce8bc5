"""How large the decoder's tiles are: as the operator says, or as the memory of the device allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from services.postprocess.tiles import Mosaic

SMALLEST: Final = 20
"""Edge in latent cells of the smallest tiles whose seams were measured: 160 pixels, of which 96 overlap."""
_STEP: Final = 2


class DoesNotFit(Exception):
    """A picture that no tiles make small enough; both are bytes."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"{needed} bytes are needed, {available} are available")
        self.needed = needed
        self.available = available


class Tiling(Protocol):
    """A rule for the tiles of a picture."""

    @property
    def facts(self) -> str:
        """What it depends on, for a fingerprint."""
        ...

    def mosaic(self, height: int, width: int, scale: int) -> Mosaic:
        """The tiles of a picture of so many latent cells of `scale` pixels. Raises `DoesNotFit`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedTiles:
    """Tiles of at most `size` latent cells along an edge, 0 for whole pictures, overlapping by `overlap`."""

    size: int = 0
    overlap: int = 12

    @property
    def facts(self) -> str:
        """See `Tiling`."""
        return f"{self.size} {self.overlap}"

    def mosaic(self, height: int, width: int, scale: int) -> Mosaic:
        """See `Tiling`; it always fits."""
        longest = max(height, width)
        size = min(self.size or longest, longest)
        overlap = min(self.overlap, size // 2) if size < longest else 0
        return Mosaic(height=height, width=width, size=size, overlap=overlap, scale=scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class Appetite:
    """Bytes that decoding takes for a latent cell: `held` from latent frame to latent frame, `work` beside that.

    What is held is the cache of the convolutions, which every tile has; the work is that of one tile at a time.
    """

    held: float
    work: float

    def of(self, mosaic: Mosaic) -> int:
        """Bytes that a clip of such pictures takes."""
        cells = [tile.height * tile.width for tile in mosaic.tiles]
        return round(self.held * sum(cells) + self.work * max(cells))


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingTiles:
    """Whole pictures where `available` bytes suffice, else the largest tiles for which they do."""

    appetite: Appetite
    available: int
    overlap: int = 12

    @property
    def facts(self) -> str:
        """See `Tiling`."""
        return f"{self.available} bytes {self.overlap}"

    def mosaic(self, height: int, width: int, scale: int) -> Mosaic:
        """See `Tiling`."""
        least: int | None = None
        for size in _sizes(max(height, width)):
            mosaic = FixedTiles(size=size, overlap=self.overlap).mosaic(height, width, scale)
            needed = self.appetite.of(mosaic)
            if needed <= self.available:
                return mosaic
            least = needed if least is None else min(least, needed)
        raise DoesNotFit(least or 0, self.available)


def _sizes(longest: int) -> Iterator[int]:
    """Edges of tiles from the whole picture down."""
    yield longest
    yield from range((longest - 1) // _STEP * _STEP, SMALLEST - 1, -_STEP)
