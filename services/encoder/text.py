"""A prompt as Wan cleans it before it is read (Wan2.2 `wan/modules/tokenizers.py`; diffusers `prompt_clean`)."""

import html
import re

import ftfy

_WHITESPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """`text` with broken Unicode mended, HTML entities resolved twice, and runs of whitespace as one space."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _WHITESPACE.sub(" ", mended).strip()
