"""Stage `upscale`: larger pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import torch

from services.model.folder import ModelFolder
from services.model.manifest import PLAIN_UPSCALER
from services.postprocess.architectures import Network, load_network
from services.postprocess.frames import Frames, Pixels
from services.postprocess.runtimes import Batch, Choice, choose_runtime
from services.postprocess.scaling import OPENCV, Scaler

LANCZOS = PLAIN_UPSCALER
"""Id of the plain upscaler, which is always there."""

_BATCH_PIXELS = 2**19


class LanczosUpscaler:
    """Enlarges by `factor` with the Lanczos kernel of `scaler`; it holds nothing."""

    name = "upscale"

    def __init__(self, factor: int, scaler: Scaler = OPENCV) -> None:
        self._factor = factor
        self._scaler = scaler

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, `factor` times as wide and high."""
        _, height, width, _ = item.pixels.shape
        larger = self._scaler.scaled(item.pixels, width * self._factor, height * self._factor)
        yield Frames(first=item.first, pixels=larger)

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """An upscaling network and what runs it.

    Pictures of more than `tile` pixels along an edge are made in tiles, each seen with `margin` pixels around it that
    are thrown away: where the network looks no further than that, seams are exactly what the whole picture would give.
    """

    network: Network
    runtime: Choice
    tile: int
    margin: int

    def enlarge(self, pixels: Pixels) -> Pixels:
        """`pixels`, `network.scale` times as wide and high."""
        scale, (_, height, width, _) = self.network.scale, pixels.shape
        larger = np.empty((len(pixels), height * scale, width * scale, 3), np.uint8)
        for top, bottom in _spans(height, self.tile):
            for left, right in _spans(width, self.tile):
                first_row, last_row = max(0, top - self.margin), min(height, bottom + self.margin)
                first_column, last_column = max(0, left - self.margin), min(width, right + self.margin)
                seen = self._enlarge_whole(pixels[:, first_row:last_row, first_column:last_column])
                down, across = (top - first_row) * scale, (left - first_column) * scale
                larger[:, top * scale : bottom * scale, left * scale : right * scale] = seen[
                    :, down : down + (bottom - top) * scale, across : across + (right - left) * scale
                ]
        return larger

    def _enlarge_whole(self, pixels: Pixels) -> Pixels:
        count, height, width, _ = pixels.shape
        down, across = self._missing(height), self._missing(width)
        padded = np.pad(pixels, ((0, 0), (0, down), (0, across), (0, 0)), mode="edge") if down or across else pixels
        batch = np.ascontiguousarray(padded.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        at_once = max(1, _BATCH_PIXELS // (batch.shape[2] * batch.shape[3]))
        parts = [_to_pixels(self.runtime.run(batch[at : at + at_once])) for at in range(0, count, at_once)]
        scale = self.network.scale
        return np.concatenate(parts)[:, : height * scale, : width * scale]

    def _missing(self, edge: int) -> int:
        long_enough = max(edge, self.network.least_edge)
        return long_enough + -long_enough % self.network.multiple - edge


class NetworkUpscaler:
    """Enlarges by `factor` with a network: in as many passes as it takes, then shrunk where that was too much."""

    name = "upscale"

    def __init__(self, loaded: LoadedNetwork, factor: int, scaler: Scaler = OPENCV) -> None:
        self._loaded = loaded
        self._factor = factor
        self._scaler = scaler

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, `factor` times as wide and high."""
        pixels, reached = item.pixels, 1
        while reached < self._factor:
            pixels = self._loaded.enlarge(pixels)
            reached *= self._loaded.network.scale
        if reached != self._factor:
            _, height, width, _ = item.pixels.shape
            pixels = self._scaler.scaled(pixels, width * self._factor, height * self._factor)
        yield Frames(first=item.first, pixels=pixels)

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscalers:
    """Every upscaler of a process: the plain one, and the manifest's networks in the order of preference."""

    networks: Mapping[str, LoadedNetwork]

    @property
    def ids(self) -> Sequence[str]:
        """Ids that a request may name."""
        return (LANCZOS, *self.networks)

    @property
    def preferred(self) -> str:
        """The one for requests that name none."""
        return next(iter(self.networks), LANCZOS)

    def stage(self, name: str, factor: int, scaler: Scaler = OPENCV) -> LanczosUpscaler | NetworkUpscaler:
        """The stage of the upscaler `name`."""
        if name == LANCZOS:
            return LanczosUpscaler(factor, scaler)
        return NetworkUpscaler(self.networks[name], factor, scaler)


PLAIN = Upscalers(networks=MappingProxyType({}))
"""Where no network is loaded."""


def load_upscalers(
    folder: ModelFolder, device: torch.device, *, threads: int | None, runtime: str, tile: int, margin: int
) -> Upscalers:
    """The networks that the manifest names, each on the fastest runtime, or on the one that `runtime` names.

    Raises `ModelRefused` for a file that must not be used, `FailedPrecondition` for a runtime that is not there.
    """
    networks: dict[str, LoadedNetwork] = {}
    for entry in folder.manifest.upscalers:
        network = load_network(folder, entry, device)
        onnx = None if entry.onnx is None else folder.checked_file(entry.onnx)
        chosen = choose_runtime(network, onnx, device, threads=threads, wanted=runtime)
        networks[entry.id] = LoadedNetwork(network=network, runtime=chosen, tile=tile, margin=margin)
    return Upscalers(networks=MappingProxyType(networks))


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    """`length` cut into spans of nearly one size, none longer than `size`."""
    count = -(-length // size)
    edges = [round(index * length / count) for index in range(count + 1)]
    return list(pairwise(edges))


def _to_pixels(batch: Batch) -> Pixels:
    return np.rint(np.clip(batch, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
