"""A font that has all the letters of a text, found through fontconfig."""

import shutil
import subprocess
from pathlib import Path

from PIL import ImageFont

_PREFERRED = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "LiberationSans-Regular.ttf")
_TIMEOUT_SECONDS = 10

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class GlyphMissing(ValueError):
    """No installed font has all the letters of a text. `letters` are those that none has."""

    def __init__(self, letters: str) -> None:
        super().__init__(f"no installed font has {' '.join(repr(letter) for letter in letters)}")
        self.letters = letters


def font_for(text: str, size: int) -> Font:
    """A font of `size` pixels that has every letter of `text`. Raises `GlyphMissing`.

    Where fontconfig is not installed, Pillow's own font serves printable ASCII.
    """
    letters = sorted({letter for letter in text if not letter.isspace()})
    found = _covering(letters)
    if found:
        return ImageFont.truetype(str(found), size)
    if all(letter.isascii() and letter.isprintable() for letter in letters):
        return ImageFont.load_default(size)
    missing = [letter for letter in letters if not _covering([letter])]
    raise GlyphMissing("".join(missing or letters)[:8])


def _covering(letters: list[str]) -> Path | None:
    program = shutil.which("fc-list")
    if program is None:
        return None
    charset = " ".join(f"{ord(letter):x}" for letter in letters)
    pattern = f":scalable=true:charset={charset}" if letters else ":scalable=true"
    listed = subprocess.run(
        [program, "--format", "%{file}\n", pattern],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    files = sorted({Path(line) for line in listed.stdout.splitlines() if line})
    preferred = [file for name in _PREFERRED for file in files if file.name == name]
    return next(iter([*preferred, *files]), None)
