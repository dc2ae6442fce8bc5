"""Frames on their way through the chain, and the shape that every stage of it has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""RGB pictures, [n, height, width, 3], full range, row-major."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Consecutive frames of one clip; `first` is the index of the first of them."""

    first: int
    pixels: Pixels

    @property
    def count(self) -> int:
        """How many frames these are."""
        return int(self.pixels.shape[0])


OutT_co = TypeVar("OutT_co", covariant=True)


class Stage(Protocol[OutT_co]):
    """One link of the chain, made for one clip and used by one thread at a time: frames in, frames out.

    The last stage of a chain gives something else, an encoder its fragments. What `push` and `flush` give is in the
    order of the clip; a stage keeps no more than the frames that it still needs.
    """

    @property
    def name(self) -> str:
        """What the stage does, as it is called in traces: `upscale`, `encode`."""
        ...

    def push(self, item: Frames) -> Iterator[OutT_co]:
        """Take the next frames; give whatever is ready."""
        ...

    def flush(self) -> Iterator[OutT_co]:
        """After the last frames: give what was held back."""
        ...
