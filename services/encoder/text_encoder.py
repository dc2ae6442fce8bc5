"""Text to the embeddings that condition the denoiser: tokenizer and `UMT5EncoderModel`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from services.encoder.cache import EmbeddingCache
from services.encoder.text import clean
from services.model.folder import ModelFolder
from services.model.weights import load_module


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedText:
    """One text's embedding, [tokens, d] on the host in the encoder's dtype, without padding.

    `total_tokens` is what the whole text has, the end token included; it is more than the embedding's length where the
    text was truncated.
    """

    embedding: torch.Tensor
    total_tokens: int
    cached: bool

    @property
    def tokens(self) -> int:
        """Tokens in the embedding."""
        return int(self.embedding.shape[0])


class TextEncoder:
    """A loaded text encoder with its cache; used by one thread at a time.

    Texts are embedded each at its own length, without padding: masked padding does not change an embedding, and so it
    depends on nothing but its text: not on the text it came with, nor on what the cache holds.
    """

    def __init__(
        self, *, tokenizer: Any, model: UMT5EncoderModel, max_tokens: int, fingerprint: str, cache: EmbeddingCache
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self.max_tokens = max_tokens
        self.fingerprint = fingerprint
        self.cache = cache
        self.device = model.device
        self.dtype = model.dtype
        self.embedding_size = int(model.config.d_model)

    @classmethod
    def load(cls, folder: ModelFolder, *, dtype: torch.dtype, device: torch.device, cache_bytes: int) -> Self:
        """The text encoder of `folder`. Raises `ModelRefused` naming file and key."""
        component = folder.component("text_encoder")
        max_tokens = folder.manifest.text.max_length
        facts = f"{folder.fingerprint} text_encoder {dtype} {max_tokens}"
        return cls(
            tokenizer=AutoTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True),
            model=load_module(component, UMT5EncoderModel, dtype, device),
            max_tokens=max_tokens,
            fingerprint=hashlib.sha256(facts.encode()).hexdigest()[:16],
            cache=EmbeddingCache(cache_bytes),
        )

    def encode(self, texts: Sequence[str]) -> tuple[EncodedText, ...]:
        """The embeddings of `texts`, in order. A text of more than `max_tokens` tokens loses its end."""
        return tuple(self._encode(clean(text)) for text in texts)

    def _encode(self, text: str) -> EncodedText:
        total = len(self._tokenizer(text, add_special_tokens=True, verbose=False).input_ids)
        known = self.cache.get(self.fingerprint, text)
        if known is not None:
            return EncodedText(embedding=known, total_tokens=total, cached=True)
        tokens = self._tokenizer(
            text, add_special_tokens=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))
            embedding = states.last_hidden_state[0].to("cpu", self.dtype)
        self.cache.put(self.fingerprint, text, embedding)
        return EncodedText(embedding=embedding, total_tokens=total, cached=False)
