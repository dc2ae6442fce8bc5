from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from transformers import AutoTokenizer, UMT5EncoderModel

from services.encoder.cache import EmbeddingCache
from services.encoder.text import clean
from services.encoder.text_encoder import TextEncoder
from services.model.folder import ModelFolder

PROMPTS = [
    "a red circle moves left across a blue background",
    "a red circle",
    "",
    "  a   red\n circle &amp;amp; a blue\tsquare  ",
    "赤い丸が左へ動く",
    "ï»¿schÃ¶n, a green square",
]


@pytest.fixture(scope="module")
def pipeline(model: Path) -> WanPipeline:
    return WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(model / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(model / "vae"),
        scheduler=UniPCMultistepScheduler.from_pretrained(model / "scheduler"),
    )


@pytest.fixture
def encoder(model: Path) -> TextEncoder:
    return TextEncoder.load(ModelFolder(model), dtype=torch.float32, device=torch.device("cpu"), cache_bytes=1_000_000)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_embedding_padded_with_zeros_is_what_the_reference_pipeline_gives(
    encoder: TextEncoder, pipeline: WanPipeline, prompt: str
) -> None:
    with torch.inference_mode():
        expected, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)

    (encoded,) = encoder.encode([prompt])

    assert encoded.embedding.shape == (encoded.tokens, encoder.embedding_size)
    padded = torch.nn.functional.pad(encoded.embedding, (0, 0, 0, 16 - encoded.tokens))
    torch.testing.assert_close(padded, expected[0], atol=1e-5, rtol=1e-5)


def test_a_text_that_is_too_long_loses_its_end_but_keeps_its_end_token(encoder: TextEncoder) -> None:
    (encoded,) = encoder.encode(["a red circle moves left across a blue background and on and on"])

    assert encoded.tokens == encoder.max_tokens == 16
    assert encoded.total_tokens > 16


def test_an_embedding_depends_on_its_own_text_only(encoder: TextEncoder, model: Path) -> None:
    fresh = TextEncoder.load(ModelFolder(model), dtype=torch.float32, device=torch.device("cpu"), cache_bytes=0)
    (alone,) = fresh.encode(["a red circle"])

    _, beside, _ = encoder.encode(["a blue square moves", "a red circle", ""])
    (again,) = encoder.encode(["a red circle"])

    assert torch.equal(beside.embedding, alone.embedding)
    assert torch.equal(again.embedding, alone.embedding)
    assert (beside.cached, again.cached) == (False, True)


def test_texts_that_clean_up_to_the_same_words_share_an_entry(encoder: TextEncoder) -> None:
    first, second = encoder.encode(["a red circle", "  a red\n\ncircle "])

    assert (first.cached, second.cached) == (False, True)
    assert (encoder.cache.hits, encoder.cache.misses, len(encoder.cache)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("  a \n b\t", "a b"), ("a &amp;lt; b", "a < b"), ("schÃ¶n", "schön"), ("a\u00a0b", "a b"), ("&nbsp;", "")],
)
def test_text_is_cleaned_as_the_reference_does(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_the_least_recently_used_embedding_leaves_first() -> None:
    cache = EmbeddingCache(3 * 40)
    for text in "abc":
        cache.put("model", text, torch.zeros(10))
    cache.get("model", "a")
    cache.put("model", "d", torch.zeros(10))

    assert cache.get("model", "b") is None
    assert cache.get("model", "a") is not None
    assert (len(cache), cache.size_bytes) == (3, 120)


def test_another_model_does_not_see_the_embedding() -> None:
    cache = EmbeddingCache(1000)
    cache.put("one", "a", torch.zeros(10))

    assert cache.get("two", "a") is None


def test_an_embedding_that_is_larger_than_the_cache_is_not_kept() -> None:
    cache = EmbeddingCache(100)
    cache.put("model", "a", torch.zeros(10))
    cache.put("model", "b", torch.zeros(1000))

    assert (len(cache), cache.size_bytes) == (1, 40)


def test_replacing_an_embedding_does_not_count_it_twice() -> None:
    cache = EmbeddingCache(100)
    cache.put("model", "a", torch.zeros(10))
    cache.put("model", "a", torch.zeros(20))

    assert (len(cache), cache.size_bytes) == (1, 80)
