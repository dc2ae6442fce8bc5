"""Adapters kept on the device, the least recently used given up first."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from services.denoiser.adapters import Adapter, AdapterMisfit, read_adapter
from services.denoiser.experts import Expert
from services.denoiser.transformer import Transformer
from services.model.folder import ModelFolder
from services.model.manifest import AdapterEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """An adapter of the manifest with its weight on each expert."""

    id: str
    weight_high: float = 1.0
    weight_low: float = 1.0

    def weight(self, expert: Expert) -> float:
        """The weight on `expert`."""
        return self.weight_high if expert is Expert.HIGH else self.weight_low


class AdapterShelf:
    """Loads the manifest's adapters when they are first asked for; only the device's thread may use it."""

    def __init__(self, folder: ModelFolder, capacity_bytes: int) -> None:
        """`capacity_bytes`: what may stay on the device beside the adapters of runs in flight, which hold their own."""
        self._folder = folder
        self._entries = {entry.id: entry for entry in folder.manifest.adapters}
        self._capacity_bytes = capacity_bytes
        self._held: OrderedDict[tuple[str, Expert], Adapter] = OrderedDict()

    @property
    def ids(self) -> frozenset[str]:
        """The adapters that requests may name."""
        return frozenset(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters on the shelf."""
        return sum(update.nbytes for adapter in self._held.values() for update in adapter.values())

    @property
    def reserve(self) -> int:
        """Most bytes that lie on the shelf."""
        return min(self._capacity_bytes, sum(self.size(name) for name in self._entries))

    def size(self, name: str) -> int:
        """Bytes of the files of the adapter `name`; 0 for one that is not of `ids`."""
        entry = self._entries.get(name)
        return sum(self._folder.manifest.files[file].size for file in _files(entry)) if entry is not None else 0

    def names(self, uses: Sequence[AdapterUse]) -> tuple[tuple[str, ...], ...]:
        """What of `uses` shapes the latents: ids, file hashes and weights. Every id must be one of `ids`."""
        return tuple(
            (
                use.id,
                *(self._folder.manifest.files[file].sha256 for file in _files(self._entries[use.id])),
                repr(use.weight_high),
                repr(use.weight_low),
            )
            for use in uses
        )

    def names_for(self, uses: Sequence[AdapterUse], expert: Expert) -> tuple[tuple[str, ...], ...]:
        """As `names`, what of `uses` shapes the steps of `expert`."""
        files = [(use, self._file(use, expert)) for use in uses]
        return tuple(
            (use.id, self._folder.manifest.files[file].sha256, repr(use.weight(expert)))
            for use, file in files
            if file is not None and use.weight(expert) != 0
        )

    def take(self, uses: Sequence[AdapterUse], expert: Expert, transformer: Transformer) -> list[tuple[Adapter, float]]:
        """The adapters of `uses` for `expert`, weighted; those of weight 0 or without a file for it are left out.

        Raises `AdapterMisfit` naming the key, and `ModelRefused` for a file of another hash than the manifest says.
        """
        taken = []
        for use in uses:
            weight, file = use.weight(expert), self._file(use, expert)
            if file is None or weight == 0:
                continue
            if not math.isfinite(weight):
                raise AdapterMisfit(f"the weight of {use.id} must be finite")
            taken.append((self._adapter(use.id, expert, file, transformer), weight))
        self._give_up()
        return taken

    def _file(self, use: AdapterUse, expert: Expert) -> str | None:
        entry = self._entries[use.id]
        return entry.high if expert is Expert.HIGH else entry.low

    def _adapter(self, name: str, expert: Expert, file: str, transformer: Transformer) -> Adapter:
        key = (name, expert)
        if key not in self._held:
            path = self._folder.checked_file(file)
            self._held[key] = read_adapter(path, transformer.module, transformer.dtype, transformer.device)
        self._held.move_to_end(key)
        return self._held[key]

    def _give_up(self) -> None:
        while self._held and self.nbytes > self._capacity_bytes:
            self._held.popitem(last=False)


def _files(entry: AdapterEntry) -> list[str]:
    return [file for file in (entry.high, entry.low) if file is not None]
