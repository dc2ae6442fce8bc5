"""Overlapping tiles of a picture, and how their contents are blended back into one."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A rectangle of latents, in latent cells."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, latents: torch.Tensor) -> torch.Tensor:
        """This rectangle of `latents` [..., H, W]."""
        return latents[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Mosaic:
    """A picture of `height` x `width` latent cells as tiles of at most `size` cells, overlapping by at least `overlap`.

    All tiles have one shape, so that a device tunes its kernels once; where the cells do not divide evenly the overlap
    grows. Across an overlap the weights of the tiles are ramps that add up to one. `scale` is pixels per cell.
    Raises `ValueError` unless 0 <= overlap < size.
    """

    def __init__(self, *, height: int, width: int, size: int, overlap: int, scale: int) -> None:
        if not 0 <= overlap < size:
            raise ValueError(f"overlap must be at least 0 and less than the tile size {size}, not {overlap}")
        self._scale = scale
        self._cells = (height, width)
        self._tops, self._lefts = _starts(height, size, overlap), _starts(width, size, overlap)
        self.tiles = tuple(
            Tile(top=top, left=left, height=min(size, height), width=min(size, width))
            for top, left in product(self._tops, self._lefts)
        )

    @cached_property
    def _down(self) -> dict[int, torch.Tensor]:
        return _weights(self._tops, self.tiles[0].height, self._cells[0], self._scale)

    @cached_property
    def _across(self) -> dict[int, torch.Tensor]:
        return _weights(self._lefts, self.tiles[0].width, self._cells[1], self._scale)

    @property
    def edge(self) -> int:
        """The longest edge of a tile in pixels; 0 where one is the whole picture."""
        tile = self.tiles[0]
        return max(tile.height, tile.width) * self._scale if len(self.tiles) > 1 else 0

    def blend(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        """The tiles' pictures [C, n, h * scale, w * scale], in the order of `tiles`, as one [C, n, H, W]."""
        blended: torch.Tensor | None = None
        for tile, picture in zip(self.tiles, pictures, strict=True):
            if blended is None:
                blended = picture.new_zeros(*picture.shape[:2], *(cells * self._scale for cells in self._cells))
            top, left = tile.top * self._scale, tile.left * self._scale
            region = blended[..., top : top + picture.shape[-2], left : left + picture.shape[-1]]
            region += picture * self._down[tile.top].to(picture)[:, None] * self._across[tile.left].to(picture)
        assert blended is not None  # noqa: S101  (a mosaic has at least one tile)
        return blended


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(index * (length - size) / (count - 1)) for index in range(count)]


def _weights(starts: list[int], size: int, length: int, scale: int) -> dict[int, torch.Tensor]:
    """By start, the share of each pixel along one axis that comes from the tile there: 1 in all at every pixel."""
    ramps: dict[int, torch.Tensor] = {}
    total = torch.zeros(length * scale)
    for index, start in enumerate(starts):
        ramp = torch.ones(size * scale)
        if index > 0 and (shared := (starts[index - 1] + size - start) * scale) > 0:
            ramp[:shared] *= (torch.arange(shared) + 0.5) / shared
        if index + 1 < len(starts) and (shared := (start + size - starts[index + 1]) * scale) > 0:
            ramp[-shared:] *= ((torch.arange(shared) + 0.5) / shared).flip(0)
        ramps[start] = ramp
        total[start * scale : (start + size) * scale] += ramp
    return {start: ramp / total[start * scale : (start + size) * scale] for start, ramp in ramps.items()}
