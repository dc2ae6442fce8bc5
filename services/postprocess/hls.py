"""A clip as an HLS presentation (RFC 8216) in CMAF: the fragments themselves, cut where key frames stand."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from services.postprocess.captions import Captions
from services.postprocess.outputs import Output, OutputKind
from services.postprocess.spool import Piece, Spool

PLAYLIST = "application/vnd.apple.mpegurl"

_CONTENT_TYPES = {".m3u8": PLAYLIST, ".mp4": "video/mp4", ".m4s": "video/iso.segment", ".vtt": "text/vtt"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Presentation:
    """What a master playlist says of the clip."""

    width: int
    height: int
    fps: Fraction
    codecs: str
    captions: Captions | None = None


def write_hls(spool: Spool, presentation: Presentation, folder: Path) -> Iterator[Output]:
    """Two playlists, the initialisation segment, and media segments that each begin with a key frame."""
    place = folder / "hls"
    place.mkdir()
    initialisation, *pieces = spool.pieces
    segments = _segments(pieces)
    names = [f"segment-{number:05d}.m4s" for number in range(1, len(segments) + 1)]
    seconds = [sum(piece.frame_count for piece in segment) / presentation.fps for segment in segments]
    sizes = [sum(piece.size for piece in segment) for segment in segments]
    with spool.path.open("rb") as stream:
        (place / "init.mp4").write_bytes(stream.read(initialisation.size))
        for name, size in zip(names, sizes, strict=True):
            (place / name).write_bytes(stream.read(size))
    (place / "video.m3u8").write_text(_media(names, seconds), encoding="ascii")
    rates = [8 * size / length for size, length in zip(sizes, seconds, strict=True)]
    average = 8 * sum(sizes) / sum(seconds)
    (place / "index.m3u8").write_text(
        _master(presentation, peak=math.ceil(max(rates)), average=math.ceil(average)), encoding="ascii"
    )
    captions = presentation.captions
    if captions is not None:
        (place / "subtitles.vtt").write_text(captions.webvtt(), encoding="utf-8")
        (place / "subtitles.m3u8").write_text(_subtitles(captions.duration), encoding="ascii")
    written = ("subtitles.m3u8", "subtitles.vtt") if captions is not None else ()
    for name in ("index.m3u8", "video.m3u8", *written, "init.mp4", *names):
        content_type = _CONTENT_TYPES[Path(name).suffix]
        yield Output(kind=OutputKind.HLS, name=f"hls/{name}", content_type=content_type, path=place / name)


def _segments(pieces: Sequence[Piece]) -> list[list[Piece]]:
    segments: list[list[Piece]] = []
    for piece in pieces:
        if piece.independent or not segments:
            segments.append([])
        segments[-1].append(piece)
    return segments


def _media(names: Sequence[str], seconds: Sequence[Fraction]) -> str:
    listed = "".join(f"#EXTINF:{float(length):.6f},\n{name}\n" for name, length in zip(names, seconds, strict=True))
    # Rounded as players compare it with the segments: to the nearest second (RFC 8216, section 4.3.3.1).
    longest = max(1, math.floor(max(seconds) + Fraction(1, 2)))
    return (
        f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{longest}\n#EXT-X-PLAYLIST-TYPE:VOD\n"
        f'#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI="init.mp4"\n{listed}#EXT-X-ENDLIST\n'
    )


def _master(presentation: Presentation, *, peak: int, average: int) -> str:
    facts = (
        f"BANDWIDTH={peak},AVERAGE-BANDWIDTH={average},"
        f'CODECS="{presentation.codecs}",RESOLUTION={presentation.width}x{presentation.height},'
        f"FRAME-RATE={float(presentation.fps):.3f}"
    )
    media = ""
    if presentation.captions is not None:
        language = presentation.captions.language or "und"
        media = (
            f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="subtitles",NAME="{language}",LANGUAGE="{language}",'
            'AUTOSELECT=YES,URI="subtitles.m3u8"\n'
        )
        facts += ',SUBTITLES="subtitles"'
    return f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n{media}#EXT-X-STREAM-INF:{facts}\nvideo.m3u8\n"


def _subtitles(duration: float) -> str:
    return (
        f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{max(1, math.ceil(duration))}\n"
        f"#EXT-X-PLAYLIST-TYPE:VOD\n#EXTINF:{duration:.6f},\nsubtitles.vtt\n#EXT-X-ENDLIST\n"
    )
