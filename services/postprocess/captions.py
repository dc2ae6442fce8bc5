"""Subtitles that a viewer may turn on: a WebVTT file, and the packets of a track."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from services.postprocess.mp4 import Container
from services.postprocess.sprite import timestamp
from services.postprocess.subtitles import Cue

MILLISECOND = Fraction(1, 1000)

TRACK_CODECS = {Container.MP4: "mov_text", Container.WEBM: "webvtt"}
"""FFmpeg's name of the coding of subtitles in each container."""

# ISO 639-2 letters of ISO 639-1 ones, as MP4 and Matroska write a track's language.
_LANGUAGES = {
    "ar": "ara",
    "de": "deu",
    "en": "eng",
    "es": "spa",
    "fr": "fra",
    "hi": "hin",
    "it": "ita",
    "ja": "jpn",
    "ko": "kor",
    "nl": "nld",
    "pl": "pol",
    "pt": "por",
    "ru": "rus",
    "tr": "tur",
    "uk": "ukr",
    "vi": "vie",
    "zh": "zho",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """Cues in the order of their starts, cut off at the end of a clip of `duration` seconds, and their language."""

    cues: Sequence[Cue]
    duration: float
    language: str = ""

    @property
    def track_language(self) -> str:
        """The language as a track of a file has it: three letters, `und` if it is not known."""
        primary = self.language.split("-")[0].lower()
        return _LANGUAGES.get(primary, primary if len(primary) == 3 else "und")

    def webvtt(self) -> str:
        """The text of a WebVTT file."""
        cues = [f"{timestamp(cue.start)} --> {timestamp(self._end(cue))}\n{_escaped(cue.text)}\n" for cue in self.cues]
        return "WEBVTT\n\n" + "\n".join(cues)

    def packets(self, container: Container) -> Iterator[tuple[bytes, int, int]]:
        """Data, start and length in milliseconds of each sample of the track."""
        for cue in self.cues:
            text = cue.text.encode()
            data = struct.pack(">H", len(text)) + text if container is Container.MP4 else text
            start = round(cue.start * 1000)
            yield data, start, max(1, round(self._end(cue) * 1000) - start)

    def _end(self, cue: Cue) -> float:
        return min(cue.end, self.duration)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
