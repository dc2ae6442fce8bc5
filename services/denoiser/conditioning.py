"""The text that a run is conditioned on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

PROMPT = "prompt"
NEGATIVE_PROMPT = "negative_prompt"

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """Unpadded embeddings, [length, text_dim]; `negative` is None where no guidance is used."""

    positive: torch.Tensor
    negative: torch.Tensor | None

    @classmethod
    def of(
        cls, tensors: Mapping[str, torch.Tensor], *, max_length: int, text_dim: int, needs_negative: bool
    ) -> "Conditioning":
        """The conditioning in a bundle's tensors. Raises `ValueError` naming the tensor and the rule that it breaks."""
        unknown = set(tensors) - {PROMPT, NEGATIVE_PROMPT}
        if unknown:
            raise ValueError(f"{min(unknown)} is no tensor of a conditioning bundle")
        if PROMPT not in tensors:
            raise ValueError(f"{PROMPT} is missing")
        if needs_negative and NEGATIVE_PROMPT not in tensors:
            raise ValueError(f"{NEGATIVE_PROMPT} is missing, and a guidance scale other than 1 needs it")
        for name, tensor in tensors.items():
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"{name} must be float32, bfloat16 or float16")
            if tensor.dim() != 2 or tensor.shape[1] != text_dim:
                raise ValueError(f"{name} must have shape [length, {text_dim}], not {list(tensor.shape)}")
            if not 1 <= tensor.shape[0] <= max_length:
                raise ValueError(f"{name} must be 1 to {max_length} tokens long, not {tensor.shape[0]}")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} must be finite")
        return cls(positive=tensors[PROMPT], negative=tensors.get(NEGATIVE_PROMPT) if needs_negative else None)


def padded(embedding: torch.Tensor, length: int) -> torch.Tensor:
    """`embedding` with zero rows up to `length`: Wan attends to its padding, so it must be as long as in training."""
    return torch.nn.functional.pad(embedding, (0, 0, 0, length - embedding.shape[0]))
