"""The memory that a run needs beside the weights, measured once for a model, a device and a size, and stored.

While it has a step a run needs the peak of an evaluation. From step to step it keeps its solver state, the keys and
values of its text, the residuals of a step cache and its adapters: all that counts for every run that has a seat.
"""

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
from services.denoiser.transformer import Context

_STATE_TENSORS = 4
_FILE = "memory.json"


class MemoryBook:
    """Measured footprints by size, kept in a JSON file in `folder` if one is given."""

    def __init__(self, pool: ExpertPool, folder: Path | None) -> None:
        device = torch.cuda.get_device_name(pool.device) if pool.device.type == "cuda" else pool.device.type
        self._key = f"{pool.fingerprint} {device} {pool.numerics}"
        self._path = None if folder is None else folder / _FILE
        self._channels, self._width, self._itemsize = pool.first.channels, pool.first.width, pool.dtype.itemsize
        self._measured: dict[VideoShape, Footprint] = {
            VideoShape.parse(text): Footprint(peak=peak, held=held)
            for text, (peak, held) in self._stored().get(self._key, {}).items()
        }

    @property
    def measured(self) -> Mapping[VideoShape, Footprint]:
        """What was measured, here or before: the peak of an evaluation, and what of it stays between two."""
        return self._measured

    def calibrate(self, shapes: Sequence[VideoShape], measure: Callable[[LatentShape], Footprint]) -> None:
        """Measure those of `shapes` that are not in the book, and write them into it."""
        missing = [shape for shape in shapes if shape not in self._measured]
        for shape in missing:
            self._measured[shape] = measure(shape.latents(self._channels))
        if missing and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            ours = {str(shape): [each.peak, each.held] for shape, each in self._measured.items()}
            stored = self._stored() | {self._key: ours}
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(stored, indent=1, sort_keys=True))
            part.replace(self._path)

    def footprint(self, shape: VideoShape, *, cached_prompts: int = 0, adapters: int = 0) -> Footprint:
        """What a run on `shape` needs; by its tokens, from the greediest size that was measured, where it was not.

        `cached_prompts`: prompts that a step cache keeps two residuals of. `adapters`: their bytes.
        """
        latents = shape.latents(self._channels)
        known = self._measured.get(shape) or self._estimated(latents)
        residuals = 2 * cached_prompts * latents.tokens * self._width * self._itemsize
        state = _STATE_TENSORS * latents.numel * 4
        return Footprint(peak=known.peak, held=known.held + state + residuals + adapters)

    def _estimated(self, latents: LatentShape) -> Footprint:
        tokens = {shape: shape.latents(self._channels).tokens for shape in self._measured}
        peak = max((each.peak / tokens[shape] for shape, each in self._measured.items()), default=0.0)
        # The text is as long whatever the clip is.
        held = max(
            (each.held * max(1.0, latents.tokens / tokens[shape]) for shape, each in self._measured.items()),
            default=0.0,
        )
        return Footprint(peak=round(peak * latents.tokens), held=round(held))

    def _stored(self) -> dict[str, dict[str, list[int]]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = json.loads(self._path.read_text())
            return {
                key: {size: [int(peak), int(held)] for size, (peak, held) in sizes.items()}
                for key, sizes in content.items()
            }
        except (ValueError, TypeError, AttributeError):
            # What is no such file is measured anew.
            return {}


def footprint_of(pool: ExpertPool, latents: LatentShape, *, batched: bool) -> Footprint:
    """Bytes of reading two prompts and of one guided evaluation on `latents`, beside the weights.

    `held` is what stays for the next evaluation, `peak` what it takes beside that. On CUDA they are the allocator's own
    figures; on the CPU the sum of the tensors that are alive at once.
    """
    expert = pool.first
    text = torch.zeros(2, pool.manifest.text.max_length, expert.text_dim)

    def evaluate() -> list[Context]:
        x = prior(latents, 0)
        contexts = [expert.read(group, latents) for group in ([text] if batched else text.split(1))]
        for context in contexts:
            expert(x, 500.0, context)
        return contexts

    expert.bring_in()
    if pool.device.type != "cuda":
        with _Allocations() as allocations:
            contexts = evaluate()
        peak, held = allocations.peak, allocations.live
    else:
        torch.cuda.synchronize(pool.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(pool.device)
        before = torch.cuda.memory_allocated(pool.device)
        contexts = evaluate()
        torch.cuda.synchronize(pool.device)
        held = torch.cuda.memory_allocated(pool.device) - before
        peak = torch.cuda.max_memory_allocated(pool.device) - before
    del contexts
    return Footprint(peak=peak - held, held=held)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that live tensors made in the block refer to."""

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[int, int] = {}
        self._seen: set[int] = set()
        self.live = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views of what was there before, such as the weights, are nothing new.
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)}
        before -= {pointer for pointer, count in self._references.items() if count}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_real(leaf) and id(leaf) not in self._seen and leaf.untyped_storage().data_ptr() not in before:
                self._note(leaf)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        self._seen.add(id(tensor))
        if not self._references.get(pointer):
            self.live += size
            self.peak = max(self.peak, self.live)
        self._references[pointer] = self._references.get(pointer, 0) + 1
        weakref.finalize(tensor, self._forget, id(tensor), pointer, size)

    def _forget(self, identity: int, pointer: int, size: int) -> None:
        self._seen.discard(identity)
        self._references[pointer] -= 1
        if not self._references[pointer]:
            self.live -= size


def _is_real(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_meta
