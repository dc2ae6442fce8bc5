"""The memory that a computation takes on its device, beside what was there before."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Bytes: the most at any time, and those that are still taken at the end."""

    peak: int
    held: int


def spent_by(work: Callable[[], object], device: torch.device) -> Spent:
    """What `work` takes on `device`; what it returns is alive when `held` is counted, and then let go.

    On CUDA these are the allocator's own figures, for the whole process; on the CPU the tensors that are alive at once.
    """
    if device.type != "cuda":
        return tensors_of(work)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = work()
    torch.cuda.synchronize(device)
    spent = Spent(
        peak=torch.cuda.max_memory_allocated(device) - before, held=torch.cuda.memory_allocated(device) - before
    )
    del kept
    return spent


def tensors_of(work: Callable[[], object]) -> Spent:
    """The tensors that `work` makes on any device, by this thread alone; what it returns counts as held.

    What others do on the device at the same time does not count, nor do the workspaces of its kernels.
    """
    with _Allocations() as allocations:
        kept = work()
        spent = Spent(peak=allocations.peak, held=allocations.live)
    del kept
    return spent


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
