"""Embeddings of texts that were seen before."""

from collections import OrderedDict

import torch


class EmbeddingCache:
    """Least recently used texts leave first, once all embeddings take more than `capacity_bytes`; 0 keeps none."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, fingerprint: str, text: str) -> torch.Tensor | None:
        """The embedding of `text` by the model `fingerprint`, or None."""
        key = (fingerprint, text)
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, fingerprint: str, text: str, embedding: torch.Tensor) -> None:
        """Keep `embedding`; one that is larger than the whole cache is not kept."""
        size = embedding.nbytes
        if size > self._capacity:
            return
        key = (fingerprint, text)
        replaced = self._entries.pop(key, None)
        self.size_bytes += size - (replaced.nbytes if replaced is not None else 0)
        self._entries[key] = embedding
        while self.size_bytes > self._capacity:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= oldest.nbytes
