"""Reads the invisible mark back, from a clip that may have been encoded again, scaled and cropped.

A video encoder keeps the mark in frames that it codes by themselves, and loses it, where the picture moves, in those
that it predicts from others. So the first frame tells where the clip lies on the canvas, and frames count by how near
their chips lie to the lattice. The check decides whether there is a mark.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from services.postprocess.frames import Pixels
from services.postprocess.mark_basis import Matrix, reduced
from services.postprocess.mark_carriers import STEPS, Carriers, Chips, carriers
from services.postprocess.mark_code import BITS, Sums, identify
from services.postprocess.mark_place import Place, cropped_places, refined

_TRIED: Final = 2
_LEAST_WEIGHT: Final = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What frames were found to carry; `mark_id` is None where there is no mark whose check is right.

    `certainty` is how far the sync stands out of chance, in standard deviations of its correlation; `sums` are those of
    the bits, [96], before their check, where the sync stands out most.
    """

    mark_id: int | None
    certainty: float
    sums: Sums


UNREAD: Final = Reading(mark_id=None, certainty=0.0, sums=np.zeros(BITS, np.float32))
"""What is read where there is nothing to read."""


class _Hearing:
    """What the frames of a clip say of it at one place, by each step: the first alone, and all together."""

    def __init__(self, first: Matrix, carriers: Carriers, place: Place, certainty: float) -> None:
        self.certainty = certainty
        self._carriers = carriers
        self._place = place
        said = self._said(first)
        self.alone = [chips.values for chips in said]
        self.together = [_weighed(chips) for chips in said]

    def take(self, luma: Matrix) -> None:
        """Take one more frame."""
        said = self._said(luma)
        self.together = [total + _weighed(chips) for total, chips in zip(self.together, said, strict=True)]

    def readings(self) -> Iterator[Reading]:
        """What is read so far: six readings, each of which may pass the check by chance."""
        for sums in map(self._carriers.bits, [*self.together, *self.alone]):
            yield Reading(mark_id=identify(sums), certainty=self.certainty, sums=sums)

    def _said(self, luma: Matrix) -> list[Chips]:
        coefficients, seen = self._place.coefficients(luma), self._place.seen()
        return [self._carriers.chips(coefficients, seen, step) for step in STEPS]


def _weighed(chips: Chips) -> Matrix:
    """A frame's chips, by how near they lie to the lattice."""
    return np.asarray(max(_LEAST_WEIGHT, chips.agreement) * chips.values, np.float32)


def read_mark(frames: Iterable[Pixels]) -> Reading:
    """The mark in pictures [h, w, 3] of one clip, whole or cropped. Raises `ValueError` when there are no pictures.

    The first picture is looked at most closely, and should be one that its encoder coded by itself. Where it is read as
    a whole picture, no crop is looked for.
    """
    layout = carriers()
    lumas = (reduced(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)) for picture in frames)
    first = next(lumas, None)
    if first is None:
        raise ValueError("there are no pictures to read")
    hearings = [_Hearing(first, layout, Place(), layout.sureness(Place().coefficients(first)))]
    if all(identify(layout.bits(values)) is None for values in hearings[0].alone):
        for certainty, place in cropped_places(first, layout, _TRIED):
            hearings.append(_Hearing(first, layout, refined(first, layout, place), certainty))
    for luma in lumas:
        for hearing in hearings:
            hearing.take(luma)
    readings = [reading for hearing in hearings for reading in hearing.readings()]
    return max(readings, key=lambda one: (one.mark_id is not None, one.certainty))
