"""States at the expert boundary, kept for runs that share everything before it: text, seed, high-noise settings."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

import torch

from services.denoiser.conditioning import Conditioning
from services.denoiser.experts import Expert
from services.denoiser.plan import STATE_SCHEMA, Plan
from services.denoiser.solvers import SolverState


def prefix_key(
    plan: Plan, conditioning: Conditioning, *, model: str, numerics: str, adapters: Sequence[Sequence[str]]
) -> str | None:
    """Names everything that determines the state at the boundary of `plan`; None where it crosses none.

    `model` is the fingerprint of the weights, `numerics` how this process computes, `adapters` those of the high-noise
    expert. What the low-noise steps alone depend on is left out.
    """
    boundary, guidance = plan.boundary_step, plan.settings.guidance
    if plan.first_step != 0 or not 0 < boundary <= plan.end_step or boundary == plan.schedule.steps:
        return None
    timesteps = plan.schedule.timesteps[:boundary]
    texts = [conditioning.positive]
    if guidance.high != 1 and conditioning.negative is not None:
        texts.append(conditioning.negative)
    content = {
        "state_schema": STATE_SCHEMA,
        "model": model,
        "numerics": numerics,
        "solver": plan.settings.solver,
        "sigmas": plan.schedule.sigmas[: boundary + 1],
        "timesteps": timesteps,
        "scales": [guidance.scale_at(Expert.HIGH, timestep) for timestep in timesteps],
        "batched": plan.batched,
        "step_cache": plan.settings.step_cache_threshold,
        "latents": plan.latents.batch,
        "seed": plan.seed,
        "adapters": [list(adapter) for adapter in adapters],
        "texts": [_digest(text) for text in texts],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class PrefixCache:
    """Boundary states in host memory by key, the least recently used given up first."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._held: OrderedDict[str, SolverState] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of the states held."""
        return sum(_nbytes(state) for state in self._held.values())

    def get(self, key: str) -> SolverState | None:
        """The state of this key, on the CPU, or None."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: str, state: SolverState) -> None:
        """Keep `state`, which is on the CPU; one that alone exceeds the capacity is not kept."""
        if _nbytes(state) > self._capacity_bytes:
            return
        self._held[key] = state
        self._held.move_to_end(key)
        while self.nbytes > self._capacity_bytes:
            self._held.popitem(last=False)


def _nbytes(state: SolverState) -> int:
    tensors = [state.x, *state.denoised, *([] if state.x_last is None else [state.x_last])]
    return sum(tensor.nbytes for tensor in tensors)


def _digest(text: torch.Tensor) -> str:
    content = f"{text.dtype} {list(text.shape)} ".encode() + text.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()
