"""The velocity field of a run: two experts, the text and the guidance behind one callable of (x, timestep)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from services.denoiser.adapters import Adapter
from services.denoiser.conditioning import Conditioning, padded
from services.denoiser.experts import Expert, expert_at
from services.denoiser.guidance import Guidance, guide
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import StepCache
from services.denoiser.transformer import Context, Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreseen:
    """Velocities of one timestep, one a text, that `sharers` runs had evaluated together in `seconds`."""

    timestep: float
    v: torch.Tensor
    seconds: float
    sharers: int


class GuidedVelocity:
    """v(x, t) of one run; what its text costs is paid once per expert, when that expert first runs.

    At the boundary the contexts of the expert before are let go: the schedule never returns to it.
    """

    def __init__(
        self,
        *,
        experts: Mapping[Expert, Transformer],
        conditioning: Conditioning,
        text_length: int,
        guidance: Guidance,
        boundary_ratio: float,
        shape: LatentShape,
        batched: bool,
        adapters: Mapping[Expert, Sequence[tuple[Adapter, float]]] = MappingProxyType({}),
        cache: StepCache | None = None,
    ) -> None:
        """`text_length` is the length that embeddings are padded to; `batched` evaluates both prompts at once.

        `adapters` are those of each expert, weighted. A `cache` may answer steps.
        """
        self._experts = experts
        self._guidance = guidance
        self._boundary_ratio = boundary_ratio
        self._shape = shape
        texts = [conditioning.positive]
        if conditioning.negative is not None:
            texts.append(conditioning.negative.to(conditioning.positive.dtype))
        self._texts = torch.stack([padded(text, text_length) for text in texts])
        self._batched = batched
        self._adapters = adapters
        self._cache = cache
        self._ready: tuple[Expert, tuple[Context, ...]] | None = None
        self._foreseen: Foreseen | None = None
        self.used: Foreseen | None = None
        self.split = False

    def texts(self, timestep: float) -> int | None:
        """How many texts a step at `timestep` evaluates in one batch; None if it cannot be shared with other runs."""
        expert = expert_at(timestep, self._boundary_ratio)
        if self._cache is not None or self._adapters.get(expert):
            return None
        if self._guidance.scale_at(expert, timestep) == 1:
            return 1
        return 2 if self._batched else None

    def expert(self, timestep: float) -> Transformer:
        """The expert that serves `timestep`."""
        return self._experts[expert_at(timestep, self._boundary_ratio)]

    def context(self, timestep: float) -> Context:
        """What the expert of `timestep` reuses at every step."""
        expert = expert_at(timestep, self._boundary_ratio)
        context = self._contexts(expert)[0]
        return context.first() if self._guidance.scale_at(expert, timestep) == 1 else context

    def foresee(self, timestep: float, v: torch.Tensor, *, seconds: float, sharers: int) -> None:
        """Take `v`, one a text, for the evaluation at `timestep` if that comes next."""
        self._foreseen = Foreseen(timestep=timestep, v=v, seconds=seconds, sharers=sharers)

    def __call__(self, x: torch.Tensor, timestep: float) -> torch.Tensor:
        """The guided velocity at x, [1, C, T, H, W] float32."""
        expert = expert_at(timestep, self._boundary_ratio)
        w = self._guidance.scale_at(expert, timestep)
        self.used, self._foreseen = self._foreseen, None
        if self.used is not None and self.used.timestep == timestep:
            v = self.used.v
            return v if w == 1 else guide(v[:1], v[1:], w)
        self.used = None
        transformer, contexts = self._experts[expert], self._contexts(expert)
        if w == 1:
            contexts = (contexts[0].first(),)
        if self._cache is None:
            v = self._evaluated(transformer, x, timestep, contexts)
        else:
            v = self._cached(self._cache, x, timestep, expert, contexts)
        return v if w == 1 else guide(v[:1], v[1:], w)

    def _evaluated(
        self, transformer: Transformer, x: torch.Tensor, timestep: float, contexts: Sequence[Context]
    ) -> torch.Tensor:
        """All velocities, one a text; where memory runs out for both prompts at once, from here on one by one."""
        try:
            return torch.cat([transformer(x, timestep, context) for context in contexts])
        except torch.OutOfMemoryError:
            if not self._batched or contexts[0].keys[0].shape[0] == 1:
                raise
        # Outside of the handler: its traceback holds what the failed evaluation had made.
        self.split, self._batched, self._ready = True, False, None
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        one_by_one = self._contexts(expert_at(timestep, self._boundary_ratio))
        return torch.cat([transformer(x, timestep, context) for context in one_by_one])

    def _cached(
        self, cache: StepCache, x: torch.Tensor, timestep: float, expert: Expert, contexts: Sequence[Context]
    ) -> torch.Tensor:
        cache.begin(timestep)
        groups = [cache.of(expert, i, context.keys[0].shape[0]) for i, context in enumerate(contexts)]
        v = torch.cat(
            [
                self._experts[expert](x, timestep, context, group)
                for context, group in zip(contexts, groups, strict=True)
            ]
        )
        if all(group.answered for group in groups):
            cache.note(timestep)
        return v

    def _contexts(self, expert: Expert) -> tuple[Context, ...]:
        if self._ready is None or self._ready[0] is not expert:
            self._ready = None
            # By the expert's scale and not by the step's, so that a run that is continued reads in the same groups.
            texts = self._texts if self._guidance.scale(expert) != 1 else self._texts[:1]
            groups = [texts] if self._batched else texts.split(1)
            adapters = self._adapters.get(expert, ())
            transformer = self._experts[expert]
            self._ready = (expert, tuple(transformer.read(group, self._shape, adapters) for group in groups))
        return self._ready[1]
