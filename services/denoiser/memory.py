"""The memory that a run needs beside the weights, measured once for a model, a device and a size, and stored.

While it has a step a run needs the peak of an evaluation. From step to step it keeps its solver state, the keys and
values of its text, the residuals of a step cache and its adapters: all that counts for every run that has a seat.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.step_scheduler import Footprint
from services.denoiser.transformer import Context
from services.model.allocations import spent_by

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

    `held` is what stays for the next evaluation, `peak` what it takes beside that.
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
    spent = spent_by(evaluate, pool.device)
    return Footprint(peak=spent.peak - spent.held, held=spent.held)
