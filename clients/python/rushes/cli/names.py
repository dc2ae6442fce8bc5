"""Names of the files that a generation leaves."""

import re
from pathlib import Path

from rushes.v1.generation_pb2 import GenerationSpec

MAX_STEM = 48


def default_video(spec: GenerationSpec, folder: Path, suffix: str = ".mp4") -> Path:
    """`<prompt>-<seed>.mp4` in the folder, numbered on where there is one already: no earlier clip is overwritten."""
    words = re.findall(r"\w+", spec.prompt.lower())
    stem = ""
    for word in words:
        longer = f"{stem}-{word}" if stem else word[:MAX_STEM]
        if len(longer) > MAX_STEM:
            break
        stem = longer
    stem = f"{stem or 'clip'}-{spec.seed}"
    candidate, count = folder / f"{stem}{suffix}", 2
    while candidate.exists() or contact_sheet(candidate).exists():
        candidate = folder / f"{stem}-{count}{suffix}"
        count += 1
    return candidate


def contact_sheet(video: Path) -> Path:
    """The contact sheet beside a clip."""
    return video.with_suffix(".png")


def beside(output: Path | None, name: str) -> Path:
    """Where a file of that name goes: under the name that was given, or its own in the folder or the current one."""
    if output is not None and not output.is_dir():
        return output
    return (output or Path()) / Path(name).name


def file_folder(video: Path, name: str) -> Path | None:
    """The folder of the files of that format beside the clip; None for a format of one file."""
    return video.with_name(f"{video.stem}-{name}") if name in ("hls", "sprite") else None
