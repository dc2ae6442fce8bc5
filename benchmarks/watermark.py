"""What the invisible mark survives: rendered clips and photographs, encoded again, scaled and cropped."""

import asyncio
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Final

import av
import cv2
import numpy as np
import skimage.data
from skimage.metrics import structural_similarity

from benchmarks.measurement import Figure, Report, at_least, at_most
from benchmarks.quality import psnr
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render
from services.postprocess.codecs import Rate
from services.postprocess.frames import Frames, Pixels
from services.postprocess.mark import Marker
from services.postprocess.mark_code import payload
from services.postprocess.mark_reading import Reading, read_mark
from services.postprocess.mp4 import Encoding, Mp4Encoder

_SEED: Final = 500
_FRAMES: Final = 8
_PAN: Final = 4
_PHOTOGRAPHS: Final = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "grass.png", "motorcycle_left.png"),
    *("gravel.png", "brick.png", "hubble_deep_field.jpg", "retina.jpg"),
)

Change = Callable[[Pixels], Pixels]


def encoded(pixels: Pixels, crf: int) -> Pixels:
    """The pictures as they come out of H.264; an odd edge loses its last line."""
    pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
    encoder = Mp4Encoder(
        width=pixels.shape[2], height=pixels.shape[1], fps=Fraction(16), encoding=Encoding(rate=Rate(crf=crf))
    )
    pieces = [*encoder.push(Frames(first=0, pixels=pixels)), *encoder.flush()]
    with av.open(io.BytesIO(b"".join(piece.data for piece in pieces))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scaled(pixels: Pixels, share: float) -> Pixels:
    """The pictures at another size."""
    kernel = cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, None, fx=share, fy=share, interpolation=kernel) for frame in pixels])


def cropped(pixels: Pixels, left: float, top: float) -> Pixels:
    """Without 10 % of width and height; `left` and `top` say which share of that goes on those sides."""
    height, width = pixels.shape[1:3]
    down, across = round(height * 0.9), round(width * 0.9)
    y, x = round((height - down) * top), round((width - across) * left)
    return pixels[:, y : y + down, x : x + across]


CHANGES: Final[Mapping[str, Change]] = MappingProxyType(
    {
        "H.264 at CRF 28": lambda pixels: encoded(pixels, 28),
        "50 %, CRF 28": lambda pixels: encoded(scaled(pixels, 0.5), 28),
        "200 %, CRF 28": lambda pixels: encoded(scaled(pixels, 2.0), 28),
        "10 % off all around, CRF 28": lambda pixels: encoded(cropped(pixels, 0.5, 0.5), 28),
        "10 % off two edges, CRF 28": lambda pixels: encoded(cropped(pixels, 1.0, 0.0), 28),
        "10 % off, 50 %, CRF 28": lambda pixels: encoded(scaled(cropped(pixels, 0.3, 0.8), 0.5), 28),
        "10 % off, 150 %, CRF 28": lambda pixels: encoded(scaled(cropped(pixels, 0.6, 0.2), 1.5), 28),
        "CRF 28 twice": lambda pixels: encoded(encoded(pixels, 28), 28),
    }
)
"""What is done to a clip that was delivered at CRF 18."""

SMALL: Final[Mapping[str, Change]] = MappingProxyType(
    {"delivered": lambda pixels: pixels}
    | {name: CHANGES[name] for name in ("H.264 at CRF 28", "10 % off all around, CRF 28")}
)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Readings of marked clips: shares of right bits before the check, ids that were read, and wrong ones."""

    bits: list[float] = field(default_factory=list)
    right: int = 0
    wrong: int = 0

    def count(self, reading: Reading, mark_id: int) -> None:
        """Take one more reading of a clip with `mark_id`."""
        self.bits.append(float(np.mean((reading.sums > 0) == payload(mark_id))))
        self.right += reading.mark_id == mark_id
        self.wrong += reading.mark_id not in (mark_id, None)


def world(index: int, width: int, height: int) -> Pixels:
    """A clip of the embedded model's world, rendered at this size."""
    clip = draw_clip(np.random.default_rng(_SEED + index), Mixture(two_objects=0.3, moving_camera=0.3))
    return np.asarray(np.round(render(clip, width=width, height=height, num_frames=_FRAMES) * 255), np.uint8)


def photograph(index: int, width: int, height: int) -> Pixels:
    """A camera that pans over a photograph, four pixels a frame."""
    path = Path(skimage.data.__file__).parent / _PHOTOGRAPHS[index % len(_PHOTOGRAPHS)]
    picture = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    scale = max(height / picture.shape[0], (width + _PAN * _FRAMES) / picture.shape[1])
    kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(picture, None, fx=scale + 1e-3, fy=scale + 1e-3, interpolation=kernel)
    top = (picture.shape[0] - height) // 2
    return np.stack([picture[top : top + height, _PAN * n : _PAN * n + width] for n in range(_FRAMES)])


KINDS: Final = MappingProxyType({"rendered clips": world, "panned photographs": photograph})


async def measure(repeats: int = 6) -> Report:
    """Bits and ids read back. `repeats` is the number of clips of each kind at 480p; of other sizes there are fewer."""
    return await asyncio.to_thread(_measure, repeats)


def _measure(clips: int) -> Report:
    figures = [figure for kind in KINDS for figure in _visibility(kind, clips)]
    few = max(1, clips // 3)
    tallies: list[Tally] = []
    for size, count in (((854, 480), clips), ((1280, 720), few)):
        for kind in KINDS:
            found = _tallies(kind, size, count, CHANGES)
            tallies += found.values()
            figures += [_figure(f"{size[1]}p, {kind}, {name}", one, target=True) for name, one in found.items()]
    for edge in (384, 192, 96):
        for kind in KINDS:
            found = _tallies(kind, (edge, edge), few, SMALL)
            tallies += found.values()
            figures += [_figure(f"{edge}x{edge}, {kind}, {name}", one, target=False) for name, one in found.items()]
    readings, false = _unmarked(clips)
    figures += [
        at_most(f"ids read from {readings} unmarked clips", false, 0, "ids"),
        at_most(f"wrong ids read from {sum(len(one.bits) for one in tallies)} marked clips", _wrong(tallies), 0, "ids"),
    ]
    return Report(title="Watermark: what it survives", figures=tuple(figures), samples={})


def _figure(name: str, tally: Tally, *, target: bool) -> Figure:
    note = f"id read from {tally.right} of {len(tally.bits)} clips"
    share = 100 * float(np.mean(tally.bits))
    if target:
        return at_least(name, share, 99.0, "% of bits", note)
    return Figure(name=name, value=share, unit="% of bits", note=note)


def _tallies(kind: str, size: tuple[int, int], clips: int, changes: Mapping[str, Change]) -> dict[str, Tally]:
    """Readings by change, of clips that are delivered at CRF 18."""
    found = {name: Tally() for name in changes}
    for index in range(clips):
        mark_id = int(np.random.default_rng(index).integers(2**63)) * 2 + index % 2
        delivered = encoded(_marked(KINDS[kind](index, *size), mark_id), 18)
        for name, change in changes.items():
            found[name].count(read_mark(change(delivered)), mark_id)
    return found


def _visibility(kind: str, clips: int) -> Iterator[Figure]:
    pairs = [(pixels, _marked(pixels, index)) for index in range(clips) for pixels in (KINDS[kind](index, 854, 480),)]
    decibels = [psnr(marked, pixels) for pixels, marked in pairs]
    alike = [structural_similarity(pixels[0], marked[0], channel_axis=2) for pixels, marked in pairs]
    yield Figure(name=f"480p, {kind}, marked against unmarked", value=float(np.mean(decibels)), unit="dB")
    yield Figure(name=f"480p, {kind}, the same, structural similarity", value=float(np.mean(alike)), unit="SSIM")


def _unmarked(clips: int) -> tuple[int, int]:
    """How many unmarked clips were read, and how many ids were found in them."""
    sizes: Sequence[tuple[int, int]] = ((854, 480), (192, 192))
    found = [
        read_mark(encoded(draw(index + 20, *size), crf)).mark_id
        for size in sizes
        for draw in KINDS.values()
        for index, crf in enumerate((18, 28) * max(1, clips // 2))
    ]
    return len(found), sum(one is not None for one in found)


def _wrong(tallies: Sequence[Tally]) -> int:
    return sum(one.wrong for one in tallies)


def _marked(pixels: Pixels, mark_id: int) -> Pixels:
    return next(iter(Marker(mark_id).push(Frames(first=0, pixels=pixels)))).pixels
