"""Subtitles: SubRip and WebVTT text into cues."""

import re
from dataclasses import dataclass

_MAX_CUES = 2000
_TIME = r"(?:(\d{1,3}):)?([0-5]?\d):([0-5]?\d)[.,](\d{3})"
_TIMING = re.compile(rf"^\s*{_TIME}\s+-->\s+{_TIME}(?:\s.*)?$")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_WEBVTT_BLOCKS = ("NOTE", "STYLE", "REGION")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """Lines of text that stand from `start` until `end`, in seconds."""

    start: float
    end: float
    text: str


class SubtitleInvalid(ValueError):
    """A subtitle file that cannot be read; the message names the line."""


def parse_subtitles(text: str, *, duration: float) -> tuple[Cue, ...]:
    """The cues of SubRip or WebVTT `text`, in the order of their starts; markup is left out.

    Raises `SubtitleInvalid` for a block without timing, an end before its start, a cue that begins at or after
    `duration` seconds, a text without cues, and more than 2000 cues.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    webvtt = lines[0].startswith("WEBVTT")
    cues: list[Cue] = []
    for number, block in _blocks(lines):
        if webvtt and (number == 1 or block[0].split(" ")[0] in _WEBVTT_BLOCKS):
            continue
        at = next((index for index, line in enumerate(block[:2]) if "-->" in line), None)
        if at is None:
            raise SubtitleInvalid(f"line {number}: a cue needs a line of timing, 00:00:01,000 --> 00:00:02,000")
        start, end = _times(block[at], number + at)
        if start >= duration:
            raise SubtitleInvalid(f"line {number + at}: begins at {start:g} s, after the clip's {duration:g} s")
        words = _MARKUP.sub("", "\n".join(block[at + 1 :])).strip()
        if words:
            cues.append(Cue(start=start, end=end, text=words))
        if len(cues) > _MAX_CUES:
            raise SubtitleInvalid(f"must have at most {_MAX_CUES} cues")
    if not cues:
        raise SubtitleInvalid("has no cues")
    return tuple(sorted(cues, key=lambda cue: cue.start))


def _blocks(lines: list[str]) -> list[tuple[int, list[str]]]:
    """Runs of lines that are not empty, each with the number of its first line."""
    blocks: list[tuple[int, list[str]]] = []
    inside = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            inside = False
        elif inside:
            blocks[-1][1].append(line)
        else:
            blocks.append((number, [line]))
            inside = True
    return blocks


def _times(line: str, number: int) -> tuple[float, float]:
    found = _TIMING.match(line)
    if not found:
        raise SubtitleInvalid(f"line {number}: is not of the form 00:00:01,000 --> 00:00:02,000")
    start, end = (
        int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(milliseconds) / 1000
        for hours, minutes, seconds, milliseconds in (found.groups()[:4], found.groups()[4:])
    )
    if end <= start:
        raise SubtitleInvalid(f"line {number}: must end after it begins")
    return start, end
