"""How well the quality gate tells damaged clips from clean ones: precision and recall of every check."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Final

import torch
from diffusers import AutoencoderKLWan

from benchmarks.gate_clips import DAMAGES, GateClip, clean_clips, damaged_clips
from benchmarks.measurement import Figure, Report, at_least, at_most
from benchmarks.work import EMBEDDED_MODEL
from services.postprocess.frames import Frames
from services.postprocess.inspection import THRESHOLDS, Check, Inspector

_SEED: Final = 6
_CHUNK: Final = 4


def inspect(clip: GateClip) -> Inspector:
    """The gate after it has seen the whole clip."""
    inspector = Inspector(fps=clip.fps, scale=clip.scale)
    for first in range(0, len(clip.pixels), _CHUNK):
        list(inspector.push(Frames(first=first, pixels=clip.pixels[first : first + _CHUNK])))
    list(inspector.flush())
    return inspector


def found(inspector: Inspector) -> set[Check]:
    """The checks that found something."""
    return {finding.check for finding in inspector.findings}


async def measure(repeats: int = 20) -> Report:
    """Precision and recall. `repeats` is the number of clean clips of each source and of clips of each damage."""
    return await asyncio.to_thread(_measure, repeats)


def _measure(clips: int) -> Report:
    torch.set_num_threads(1)
    vae = AutoencoderKLWan.from_pretrained(EMBEDDED_MODEL / "vae", torch_dtype=torch.float32).eval()
    alarms: Counter[Check] = Counter()
    highest: dict[Check, tuple[float, str]] = {}
    clean = 0
    for clip in clean_clips(clips, seed=_SEED, vae=vae):
        inspector = inspect(clip)
        clean += 1
        alarms.update(found(inspector))
        for check, score in inspector.worst.items():
            highest[check] = max(highest.get(check, (0.0, "")), (score, clip.source))
        _say(clip, found(inspector))
    figures: list[Figure] = []
    for name, (check, _) in DAMAGES.items():
        seen = [inspect(clip) for clip in damaged_clips(name, clips, seed=_SEED, vae=vae)]
        hits = sum(check in found(inspector) for inspector in seen)
        figures += _figures(name, check, hits, seen, alarms[check])
    figures += [
        Figure(
            name=f"{check.value}: highest score of a clean clip",
            value=score,
            unit="",
            note=f"threshold {THRESHOLDS[check]:g}; {source}",
        )
        for check, (score, source) in highest.items()
    ]
    figures.append(at_most("clean clips with any finding", float(sum(alarms.values())), 0, "", f"of {clean}"))
    return Report(
        title=f"Quality gate: {clean} clean clips, {clips} of each damage", figures=tuple(figures), samples={}
    )


def _figures(name: str, check: Check, hits: int, seen: Iterable[Inspector], alarms: int) -> list[Figure]:
    scores = [inspector.worst.get(check, 0.0) for inspector in seen]
    counts = f"{hits} found, {len(scores) - hits} missed, {alarms} false alarms"
    precision = hits / (hits + alarms) if hits else 0.0
    return [
        at_least(f"{name}: recall", hits / len(scores), 0.95, note=counts),
        at_least(f"{name}: precision", precision, 1.0, note=f"lowest score {min(scores):.3g}"),
    ]


def _say(clip: GateClip, checks: set[Check]) -> None:
    if checks:
        names = ", ".join(sorted(check.value for check in checks))
        sys.stderr.write(f"false alarm in {clip.source}, {clip.pixels.shape}: {names}\n")
