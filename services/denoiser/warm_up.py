"""The first evaluation of each expert, before anyone waits for it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from services.denoiser import sharing
from services.denoiser.experts import Expert
from services.denoiser.guidance_batch import GuidanceBatch, Mode, measure
from services.denoiser.memory import MemoryBook, footprint_of
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.sharing import StepSharing
from services.model.manifest import Manifest

_USABLE = 0.95
"""Of the memory that is free at start: allocators lose some between their blocks."""
_SMALL = VideoShape(width=64, height=64, frames=5)


def warm_up(pool: ExpertPool, shapes: Sequence[VideoShape], rule: GuidanceBatch) -> None:
    """Evaluate every expert on every size of `shapes`, with two prompts as `rule` groups them.

    So the kernels' first use, and what is compiled for a size, is paid for before anyone waits for it. Without `shapes`
    one size is taken: on a GPU the model's default, which also shows at start, and not in a generation, that such a
    clip does not fit; on the CPU a small one.
    """
    for transformer in pool.experts.values():
        for latents in [shape.latents(pool.first.channels) for shape in shapes] or [_usual(pool)]:
            text = torch.zeros(2, pool.manifest.text.max_length, transformer.text_dim)
            for group in [text] if rule.batched(latents.tokens) else text.split(1):
                transformer(prior(latents, 0), 500.0, transformer.read(group, latents))
    if pool.residence is not None:
        pool.residence.bring_in(Expert.HIGH)
        pool.residence.swaps = 0


def choose_guidance_batch(pool: ExpertPool, mode: Mode) -> GuidanceBatch:
    """The rule of `mode`; `measure` times both ways on the size that `warm_up` uses."""
    if mode != "measure":
        return GuidanceBatch(mode=mode)
    return GuidanceBatch(mode=mode, measured=measure(pool.first, _usual(pool), pool.manifest.text.max_length))


def choose_sharing(pool: ExpertPool, shapes: Sequence[VideoShape], mode: sharing.Mode, limit: int) -> StepSharing:
    """The rule of `mode`; for `auto` each of `shapes` is measured with 2, 4, ... runs up to `limit`."""
    if pool.ways:
        # What computes another way than the plain weights do would not be what shared steps compute.
        return StepSharing()
    if mode != "auto":
        return StepSharing(mode=mode, limit=limit)
    counts = [runs for runs in (2, 4, 8, 16, 32, 64) if runs <= limit]
    length = pool.manifest.text.max_length
    return StepSharing(
        mode=mode,
        limit=limit,
        measured={
            shape.latents(pool.first.channels): sharing.measure(pool.first, shape, length, counts) for shape in shapes
        },
    )


def measure_memory(
    pool: ExpertPool,
    shapes: Sequence[VideoShape],
    rule: GuidanceBatch,
    *,
    limit: int | None,
    reserve: int,
    folder: Path | None,
) -> tuple[MemoryBook, int | None]:
    """What runs need, and the bytes that there are for them; None where nobody counts them.

    `limit` is the operator's; without it, on a GPU, it is what is free beside the weights, less `reserve` for the
    adapters between two runs and less the blocks that are fetched before their expert's turn.
    """
    book = MemoryBook(pool, folder)
    available = limit
    if available is None and pool.device.type == "cuda":
        torch.cuda.empty_cache()
        ahead = 0 if pool.residence is None else pool.residence.prefetch_bytes
        available = max(1, int(_USABLE * torch.cuda.mem_get_info(pool.device)[0]) - reserve - ahead)
    if available is not None:
        book.calibrate(shapes, lambda latents: footprint_of(pool, latents, batched=rule.batched(latents.tokens)))
    return book, available


def default_shape(manifest: Manifest) -> VideoShape:
    """The model's default size."""
    defaults = manifest.defaults
    return VideoShape(width=defaults.width, height=defaults.height, frames=defaults.num_frames)


def _usual(pool: ExpertPool) -> LatentShape:
    shape = _SMALL if pool.device.type == "cpu" else default_shape(pool.manifest)
    return shape.latents(pool.first.channels)
