"""How this process computes: chosen once at start, reported, and part of every fingerprint that it changes."""

import os
from dataclasses import dataclass, replace

import torch

from services.chassis.errors import FailedPrecondition
from services.denoiser.attention import SDPA, Timing, fastest, measure, named, present
from services.denoiser.config import DenoiserConfig
from services.denoiser.engines import EngineTransformer, engine_kind, load_engines
from services.denoiser.float8 import to_float8
from services.denoiser.offload import HostedBlocks
from services.denoiser.pool import ExpertPool
from services.denoiser.shapes import VideoShape
from services.denoiser.transformer import Transformer

_SMALL = VideoShape(width=64, height=64, frames=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceleration:
    """What was chosen. `engines` names their runtime, empty for none; `linear_error` is 0 for the weights' own type."""

    attention: str = SDPA
    attention_present: tuple[Timing, ...] = ()
    compiled: bool = False
    linear: str = ""
    linear_error: float = 0.0
    offloaded: bool = False
    engines: str = ""

    @property
    def ways(self) -> tuple[str, ...]:
        """What of it changes the bits of a result."""
        return (
            *([f"attention={self.attention}"] if self.attention != SDPA else []),
            *(["compiled"] if self.compiled else []),
            *(["linear=float8"] if self.linear == "float8" else []),
            *([f"engines={self.engines}"] if self.engines else []),
        )


def loading_device(config: DenoiserConfig, device: torch.device) -> torch.device:
    """Where the weights are read to: blocks that stay in host memory are read there."""
    return torch.device("cpu") if config.offload else device


def accelerate(pool: ExpertPool, config: DenoiserConfig, device: torch.device) -> tuple[ExpertPool, Acceleration]:
    """`pool` arranged for `device` as `config` says, and what was chosen.

    Raises `FailedPrecondition` for what this machine lacks, and for options that exclude each other.
    """
    _check_together(config, swaps=pool.residence is not None)
    experts, error = dict(pool.experts), 0.0
    for expert, transformer in pool.experts.items():
        if config.linear == "float8":
            error = max(error, to_float8(transformer.module, device))
        if config.offload:
            experts[expert] = _offloaded(transformer, device)
    kernel, timings = _attention(experts[next(iter(experts))], config, pool, device)
    for expert, transformer in experts.items():
        transformer.attend = named(kernel, device)
        if config.compile:
            _keep_compiled(config)
            transformer.compile_blocks()
        if config.engines is not None:
            engines = load_engines(config.engines, expert, transformer.channels, device, config.threads)
            experts[expert] = EngineTransformer(transformer, engines)
    chosen = Acceleration(
        attention=kernel,
        attention_present=timings,
        compiled=config.compile,
        linear=config.linear if config.linear == "float8" else pool.dtype_name,
        linear_error=error,
        offloaded=config.offload,
        engines=engine_kind(device) if config.engines is not None else "",
    )
    return replace(pool, experts=experts, device=device, ways=chosen.ways), chosen


def _check_together(config: DenoiserConfig, *, swaps: bool) -> None:
    moves: dict[str, bool] = {"compile": config.compile, "engines": config.engines is not None}
    if config.offload:
        fixed = moves | {"step_sharing": config.step_sharing != "off"}
        mover = "offload"
    elif swaps:
        fixed = moves | {"linear=float8": config.linear == "float8"}
        mover = "experts=swap"
    else:
        return
    if swaps and config.offload:
        fixed["experts=swap"] = True
    for name, chosen in fixed.items():
        if chosen:
            raise FailedPrecondition(
                f"{mover} and {name} do not go together: one moves the weights that the other holds in place.",
                reason="CONFIG_CONFLICT",
            )


def _offloaded(transformer: Transformer, device: torch.device) -> Transformer:
    module = transformer.module
    for name, child in module.named_children():
        if name != "blocks":
            child.to(device)
    module.scale_shift_table.data = module.scale_shift_table.data.to(device)
    return Transformer(module, hosted=HostedBlocks(module.blocks, device))


def _attention(
    transformer: Transformer, config: DenoiserConfig, pool: ExpertPool, device: torch.device
) -> tuple[str, tuple[Timing, ...]]:
    kernels = present(device)
    if config.attention != "measure":
        named(config.attention, device)
        return config.attention, tuple(Timing(name=name) for name in kernels)
    defaults, shape = pool.manifest.defaults, _SMALL
    if device.type != "cpu":
        shape = VideoShape(width=defaults.width, height=defaults.height, frames=defaults.num_frames)
    timings = measure(
        kernels,
        heads=int(transformer.module.config.num_attention_heads),
        tokens=shape.latents(transformer.channels).tokens,
        head_dim=int(transformer.module.config.attention_head_dim),
        dtype=transformer.dtype,
        device=device,
    )
    return fastest(timings), tuple(timings)


def _keep_compiled(config: DenoiserConfig) -> None:
    """Inductor reads this when it first compiles, and finds there what an earlier process left."""
    if config.compile_cache is not None:
        config.compile_cache.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(config.compile_cache.resolve())
