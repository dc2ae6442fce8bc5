"""The memory that a run needs beside the weights, measured once for a model, a device and a size, and stored."""

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.step_scheduler import Footprint

_STATE_TENSORS = 4
_FILE = "memory.json"


class MemoryBook:
    """Measured peaks by size, kept in a JSON file in `folder` if one is given."""

    def __init__(self, pool: ExpertPool, folder: Path | None) -> None:
        device = torch.cuda.get_device_name(pool.device) if pool.device.type == "cuda" else pool.device.type
        self._key = f"{pool.fingerprint} {device} {pool.numerics}"
        self._path = None if folder is None else folder / _FILE
        self._channels = pool.first.channels
        self._peaks: dict[VideoShape, int] = {
            VideoShape.parse(text): int(peak) for text, peak in self._stored().get(self._key, {}).items()
        }

    @property
    def peaks(self) -> Mapping[VideoShape, int]:
        """What was measured, here or before."""
        return self._peaks

    def calibrate(self, shapes: Sequence[VideoShape], measure: Callable[[LatentShape], int]) -> None:
        """Measure those of `shapes` that are not in the book, and write them into it."""
        missing = [shape for shape in shapes if shape not in self._peaks]
        for shape in missing:
            self._peaks[shape] = measure(shape.latents(self._channels))
        if missing and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            stored = self._stored() | {self._key: {str(shape): peak for shape, peak in self._peaks.items()}}
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(stored, indent=1, sort_keys=True))
            part.replace(self._path)

    def footprint(self, shape: VideoShape) -> Footprint:
        """What a run on `shape` needs; by its tokens, from the greediest size that was measured, where it was not."""
        latents = shape.latents(self._channels)
        peak = self._peaks.get(shape)
        if peak is None:
            by_token = (each / known.latents(self._channels).tokens for known, each in self._peaks.items())
            peak = round(max(by_token, default=0.0) * latents.tokens)
        return Footprint(peak=peak, held=_STATE_TENSORS * latents.numel * 4)

    def _stored(self) -> dict[str, dict[str, int]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored: dict[str, dict[str, int]] = json.loads(self._path.read_text())
        except ValueError:
            # A file that is no JSON is measured anew.
            return {}
        return stored


def peak_of(pool: ExpertPool, latents: LatentShape, *, batched: bool) -> int:
    """Peak bytes of reading two prompts and of one guided evaluation on `latents`, beside the weights.

    On CUDA the allocator's own peak; on the CPU the sum of the tensors that are alive at once.
    """
    expert = pool.first
    text = torch.zeros(2, pool.manifest.text.max_length, expert.text_dim)

    def evaluate() -> None:
        x = prior(latents, 0)
        contexts = [expert.read(group, latents) for group in ([text] if batched else text.split(1))]
        for context in contexts:
            expert(x, 500.0, context)

    expert.bring_in()
    if pool.device.type != "cuda":
        with _Allocations() as allocations:
            evaluate()
        return allocations.peak
    torch.cuda.synchronize(pool.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(pool.device)
    before = torch.cuda.memory_allocated(pool.device)
    evaluate()
    torch.cuda.synchronize(pool.device)
    return torch.cuda.max_memory_allocated(pool.device) - before


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that live tensors made in the block refer to."""

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[int, int] = {}
        self._seen: set[int] = set()
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta and id(leaf) not in self._seen:
                self._note(leaf)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        self._seen.add(id(tensor))
        if not self._references.get(pointer):
            self._live += size
            self.peak = max(self.peak, self._live)
        self._references[pointer] = self._references.get(pointer, 0) + 1
        weakref.finalize(tensor, self._forget, id(tensor), pointer, size)

    def _forget(self, identity: int, pointer: int, size: int) -> None:
        self._seen.discard(identity)
        self._references[pointer] -= 1
        if not self._references[pointer]:
            self._live -= size
