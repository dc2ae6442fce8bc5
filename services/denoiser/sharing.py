"""Steps of several runs in one evaluation: whether it pays, and the evaluation itself.

The velocities are those of lone runs within rounding and not bit for bit, since a matrix product of more rows may add
up in another order. So this is off unless the operator turns it on, and every step says how many runs shared it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch

from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.transformer import Context, Transformer
from services.denoiser.velocity import GuidedVelocity

Mode: TypeAlias = Literal["off", "auto", "on"]

PAYS_BELOW = 0.95
"""Sharing must save this much of the time to be worth that a run waits for another's step."""
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of a guided evaluation of each of `runs` runs, one after the other and together."""

    shape: VideoShape
    runs: int
    serial_seconds: float
    shared_seconds: float

    @property
    def pays(self) -> bool:
        """Whether to share."""
        return self.shared_seconds < PAYS_BELOW * self.serial_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSharing:
    """The rule in force. `auto` shares on shapes that were measured, as widely as it was fastest a run."""

    mode: Mode = "off"
    limit: int = 1
    measured: Mapping[LatentShape, Sequence[Timing]] = field(default_factory=lambda: MappingProxyType({}))

    def most(self, latents: LatentShape) -> int:
        """How many runs on `latents` may share a step."""
        if self.mode != "auto":
            return self.limit if self.mode == "on" else 1
        paying = [timing for timing in self.measured.get(latents, ()) if timing.pays and timing.runs <= self.limit]
        return min(paying, key=lambda timing: timing.shared_seconds / timing.runs).runs if paying else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The next evaluation of a run, for others to join."""

    velocity: GuidedVelocity
    x: torch.Tensor
    timestep: float


def evaluate_together(offers: Sequence[Offer]) -> None:
    """Evaluate all and let each run find its velocity at its next step. They must be of one shape and expert.

    Does nothing where memory does not suffice: each then evaluates alone.
    """
    began = time.monotonic()
    transformer = offers[0].velocity.expert(offers[0].timestep)
    try:
        transformer.bring_in()
        contexts = [offer.velocity.context(offer.timestep) for offer in offers]
        together = joint(transformer, [o.x for o in offers], [o.timestep for o in offers], contexts)
        if transformer.device.type == "cuda":
            torch.cuda.synchronize(transformer.device)
    except torch.OutOfMemoryError:
        if transformer.device.type == "cuda":
            torch.cuda.empty_cache()
        return
    seconds = time.monotonic() - began
    for offer, v in zip(offers, together, strict=True):
        offer.velocity.foresee(offer.timestep, v, seconds=seconds, sharers=len(offers))


@torch.inference_mode()
def joint(
    transformer: Transformer, xs: Sequence[torch.Tensor], timesteps: Sequence[float], contexts: Sequence[Context]
) -> torch.Tensor:
    """v of N runs, each [1, C, T, H, W] with a context of B texts: [N, B, C, T, H, W] float32.

    The runs may be at different timesteps; their contexts have no adapters.
    """
    module, texts = transformer.module, contexts[0].keys[0].shape[0]
    shape = LatentShape(**dict(zip(("channels", "frames", "height", "width"), xs[0].shape[1:], strict=True)))
    context = replace(
        contexts[0],
        keys=tuple(torch.cat(keys) for keys in zip(*(each.keys for each in contexts), strict=True)),
        values=tuple(torch.cat(values) for values in zip(*(each.values for each in contexts), strict=True)),
    )
    x = torch.cat([transformer._patches(each.to(transformer.device, transformer.dtype), shape) for each in xs])
    modulations, heads = zip(*(transformer._modulation(timestep, context) for timestep in timesteps), strict=True)
    tables, head = torch.stack(modulations), torch.stack(heads).repeat_interleave(texts, 0).unsqueeze(2)
    for i, block in enumerate(module.blocks):
        rows = tables[:, i].repeat_interleave(x.shape[0] // len(xs), 0).unsqueeze(2)
        shift, scale, gate = rows[:, 0], rows[:, 1], rows[:, 2]
        normal = _norm(x, scale, shift, block.norm1.eps).to(transformer.dtype)
        attended = transformer._self_attention(block.attn1, normal, context.rotation, context.updates)
        x = torch.addcmul(x, attended.float(), gate)
        # What comes before the first cross-attention is the same for all texts of a run.
        x = x.repeat_interleave(len(xs) * texts // x.shape[0], 0)
        text = (context.keys[i], context.values[i])
        x = x + transformer._cross_attention(block.attn2, block.norm2(x).to(transformer.dtype), *text, context.updates)
        rows = tables[:, i].repeat_interleave(texts, 0).unsqueeze(2)
        normal = _norm(x, rows[:, 4], rows[:, 3], block.norm3.eps).to(transformer.dtype)
        x = torch.addcmul(x, block.ffn(normal).float(), rows[:, 5])
    x = _norm(x, head[:, 1], head[:, 0], module.norm_out.eps)
    return transformer._unpatched(transformer._head(x), shape).unflatten(0, (len(xs), texts))


def measure(transformer: Transformer, shape: VideoShape, text_length: int, counts: Sequence[int]) -> tuple[Timing, ...]:
    """Time a guided evaluation of so many runs on `shape` either way, the best of some rounds in turn."""
    latents = shape.latents(transformer.channels)
    x = prior(latents, 0).to(transformer.device)
    context = transformer.read(torch.zeros(2, text_length, transformer.text_dim), latents)
    timings = []
    for runs in counts:
        ways: dict[str, Callable[[], object]] = {
            "serial": lambda n=runs: [transformer(x, 500.0, context) for _ in range(n)],  # type: ignore[misc]
            "shared": lambda n=runs: joint(transformer, [x] * n, [500.0] * n, [context] * n),  # type: ignore[misc]
        }
        best = dict.fromkeys(ways, float("inf"))
        try:
            for _ in range(_ROUNDS):
                for name, way in ways.items():
                    began = time.monotonic()
                    way()
                    if transformer.device.type == "cuda":
                        torch.cuda.synchronize(transformer.device)
                    best[name] = min(best[name], time.monotonic() - began)
        except torch.OutOfMemoryError:
            break
        timings.append(Timing(shape=shape, runs=runs, serial_seconds=best["serial"], shared_seconds=best["shared"]))
    return tuple(timings)


def _norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm with a modulation of its own for each row, [N, 1, D]: in float32."""
    normal = torch.nn.functional.layer_norm(x, x.shape[-1:], None, None, eps)
    return torch.addcmul(shift, normal, scale)
