"""Two experts where one fits: one lies on the device, the other waits in host memory, and they change places.

On CUDA the waiting one lies in pinned host memory, and its first blocks are fetched while the other still works. On the
CPU, where host memory is the device's, it is given up and read again from its files. Only the device's thread may use
this, except for what says so.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import torch
from torch import nn

from services.denoiser.adapters import Adapter
from services.denoiser.experts import Expert
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import FirstBlockCache
from services.denoiser.transformer import Context, Transformer
from services.model.folder import Component
from services.model.weights import fill_module

PREFETCHED_BLOCKS: Final = 4
_FIRST: Final = tuple(f"blocks.{i}." for i in range(PREFETCHED_BLOCKS))


class Residence:
    """Who is on the device. Every expert is the same module, whether its weights are here or not."""

    def __init__(self) -> None:
        self._homes: dict[Expert, _Home] = {}
        self._resident: Expert | None = None
        self.swaps = 0
        self.swap_seconds = 0.0

    @property
    def resident(self) -> Expert | None:
        """The expert on the device; any thread may ask."""
        return self._resident

    def settle(self, expert: Expert, component: Component, transformer: Transformer) -> "SwappedTransformer":
        """Take over `transformer`, whose weights are on the device, and send them to their other place."""
        self._homes[expert] = _Home(component, transformer)
        self._homes[expert].leave()
        return SwappedTransformer(transformer, self, expert)

    def bring_in(self, expert: Expert) -> None:
        """Have `expert` on the device, in place of the other if need be."""
        if self._resident is expert:
            return
        began = time.monotonic()
        before = self._resident
        if before is not None:
            self._homes[before].leave()
            self._resident = None
        try:
            self._homes[expert].enter()
        except BaseException:
            # What had arrived would lie on the device beside whoever comes next.
            self._homes[expert].leave()
            raise
        self._resident = expert
        if before is not None:
            self.swaps += 1
            self.swap_seconds = time.monotonic() - began

    @property
    def prefetch_bytes(self) -> int:
        """Most that the first blocks of the expert that is away take on the device beside the one that is there."""
        return max(home.prefetch_bytes for home in self._homes.values())

    def expect(self, expert: Expert) -> None:
        """`expert` comes next: on CUDA its first blocks are copied beside the work of the one that is here.

        Where memory does not suffice for that, they come with the others.
        """
        if self._resident is not expert:
            self._homes[expert].prefetch()


class _Home:
    """The weights of one expert, here or away."""

    def __init__(self, component: Component, transformer: Transformer) -> None:
        self._component = component
        self._module: nn.Module = transformer.module
        self._dtype, self._device = transformer.dtype, transformer.device
        self._pinned: Mapping[str, torch.Tensor] = {}
        self._fetched: dict[str, torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._pinned = {
                name: torch.empty_like(p, device="cpu", pin_memory=True).copy_(p)
                for name, p in self._module.named_parameters()
            }
            self._stream = torch.cuda.Stream(self._device)

    @property
    def prefetch_bytes(self) -> int:
        return sum(away.nbytes for name, away in self._pinned.items() if name.startswith(_FIRST))

    def leave(self) -> None:
        for name, parameter in list(self._module.named_parameters()):
            away = self._pinned.get(name)
            self._place(name, torch.empty_like(parameter, device="meta") if away is None else away)

    def enter(self) -> None:
        if self._stream is None:
            fill_module(self._module, self._component, self._dtype, self._device)
            return
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        for name, away in self._pinned.items():
            fetched = self._fetched.pop(name, None)
            self._place(name, away.to(self._device, non_blocking=True) if fetched is None else fetched)
        torch.cuda.current_stream(self._device).synchronize()

    def prefetch(self) -> None:
        if self._stream is None or self._fetched:
            return
        main = torch.cuda.current_stream(self._device)
        with suppress(torch.OutOfMemoryError), torch.cuda.stream(self._stream):
            for name, away in self._pinned.items():
                if name.startswith(_FIRST):
                    fetched = away.to(self._device, non_blocking=True)
                    # It is used, and one day freed, on the stream of the steps.
                    fetched.record_stream(main)
                    self._fetched[name] = fetched

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        self._module.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class SwappedTransformer(Transformer):
    """An expert that comes to the device when it is used."""

    def __init__(self, transformer: Transformer, residence: Residence, expert: Expert) -> None:
        self.__dict__.update(transformer.__dict__)
        self._residence = residence
        self._expert = expert

    def bring_in(self) -> None:
        """See `Transformer`."""
        self._residence.bring_in(self._expert)

    def read(self, text: torch.Tensor, shape: LatentShape, adapters: Sequence[tuple[Adapter, float]] = ()) -> Context:
        """See `Transformer`."""
        self.bring_in()
        return super().read(text, shape, adapters)

    def __call__(
        self, x: torch.Tensor, timestep: float, context: Context, cache: FirstBlockCache | None = None
    ) -> torch.Tensor:
        """See `Transformer`."""
        self.bring_in()
        return super().__call__(x, timestep, context, cache)
