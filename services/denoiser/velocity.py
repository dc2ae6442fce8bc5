"""The velocity field of a run: two experts, the text and the guidance behind one callable of (x, timestep)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from services.denoiser.adapters import Adapter
from services.denoiser.conditioning import Conditioning, padded
from services.denoiser.experts import Expert, expert_at
from services.denoiser.guidance import Guidance, guide
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import StepCache
from services.denoiser.transformer import Context, Transformer


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

    def __call__(self, x: torch.Tensor, timestep: float) -> torch.Tensor:
        """The guided velocity at x, [1, C, T, H, W] float32."""
        expert = expert_at(timestep, self._boundary_ratio)
        w = self._guidance.scale_at(expert, timestep)
        transformer, contexts = self._experts[expert], self._contexts(expert)
        if w == 1:
            contexts = (contexts[0].first(),)
        if self._cache is None:
            v = torch.cat([transformer(x, timestep, context) for context in contexts])
        else:
            v = self._cached(self._cache, x, timestep, expert, contexts)
        return v if w == 1 else guide(v[:1], v[1:], w)

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
