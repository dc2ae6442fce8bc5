"""How this process computes: chosen once at start, reported, and part of every fingerprint that it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.denoiser.config import DenoiserConfig
from services.denoiser.engines import EngineTransformer, engine_kind, load_engines
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.transformer import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceleration:
    """What was chosen. `engines` names their runtime, empty for none."""

    engines: str = ""


def accelerate(pool: ExpertPool, config: DenoiserConfig) -> tuple[ExpertPool, Acceleration]:
    """`pool` arranged as `config` says, and what was chosen.

    Raises `FailedPrecondition` for what this machine lacks.
    """
    experts: Mapping[Expert, Transformer] = pool.experts
    engines = ""
    if config.engines is not None:
        engines = engine_kind(pool.device)
        experts = {
            expert: EngineTransformer(
                transformer,
                load_engines(config.engines, expert, transformer.channels, pool.device, config.threads),
            )
            for expert, transformer in experts.items()
        }
    ways = (f"engines={engines}",) if engines else ()
    return replace(pool, experts=experts, ways=ways), Acceleration(engines=engines)
