"""Evaluates the embedded model's committed weights by reading generated clips back; needs no network.

``python -m models.tiny.evaluate --out DIR`` writes ``evaluation.json`` and ``contact_sheet.png``.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models.tiny.few_steps import few_step_settings, load_few_step_sampler
from models.tiny.read_back import Reading, read_back
from models.tiny.sampler import Sampler, Settings
from models.tiny.scores import ATTRIBUTES, Tally, wilson
from models.tiny.train.latent_space import to_signal
from models.tiny.world.caption import draw_caption
from models.tiny.world.clip import Clip, Mixture, draw_clip
from models.tiny.world.render import render
from models.tiny.world.vocabulary import LANGUAGES

Array = npt.NDArray[np.float32]

WEIGHTS: Final = Path(__file__).parent / "weights"
_BATCH: Final = 10
_SHEET_ONE: Final = 15
_SHEET_OTHERS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One prompt with the clip that it describes."""

    clip: Clip
    language: str
    prompt: str
    seed: int


def draw_cases(count: int, mixture: Mixture, *, seed: int, held_out: bool = False) -> list[Case]:
    """Random cases, languages in turn, every prompt one of those kept out of training."""
    numbers = np.random.default_rng([seed, 4242])
    cases = []
    for index in range(count):
        clip = draw_clip(numbers, mixture, held_out=held_out)
        language = LANGUAGES[index % len(LANGUAGES)]
        prompt = draw_caption(numbers, clip, language, unseen=True).text
        cases.append(Case(clip=clip, language=language, prompt=prompt, seed=seed * 100_000 + index))
    return cases


def load_settings(weights: Path) -> Settings:
    """The manifest's defaults."""
    defaults = json.loads((weights / "rushes.json").read_text())["defaults"]
    return Settings(
        width=defaults["width"],
        height=defaults["height"],
        num_frames=defaults["num_frames"],
        steps=defaults["steps"],
        guidance_high=defaults["guidance_scale_high"],
        guidance_low=defaults["guidance_scale_low"],
        boundary=defaults["boundary_ratio"],
        flow_shift=defaults["flow_shift"],
        negative_prompt=defaults["negative_prompt"],
    )


def generate(sampler: Sampler, cases: list[Case], settings: Settings) -> Iterator[tuple[Case, Array]]:
    """Each case with its generated frames."""
    for start in range(0, len(cases), _BATCH):
        batch = cases[start : start + _BATCH]
        latents = sampler.latents([case.prompt for case in batch], [case.seed for case in batch], settings)
        yield from zip(batch, sampler.frames(latents).numpy(), strict=True)


def through_h264(frames: Array) -> Array:
    """The frames after H.264 at a usual quality (CRF 20, 4:2:0)."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(16), options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray((frame * 255.0 + 0.5).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, mode="r") as source:
        decoded = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    return np.stack(decoded).astype(np.float32) / 255.0


def tally_ground_truth(cases: list[Case], settings: Settings, change: Callable[[Array], Array]) -> Tally:
    """The checker on the renderer's own clips after ``change``: its ceiling."""
    tally = Tally()
    for case in cases:
        frames = render(case.clip, width=settings.width, height=settings.height, num_frames=settings.num_frames)
        tally.add(case.clip, read_back(change(frames)))
    return tally


def through_vae(sampler: Sampler, frames: Array) -> Array:
    """The frames after the VAE's encoder and decoder."""
    with torch.inference_mode():
        latents = sampler.vae.encode(to_signal(frames)[None].to(sampler.vae.device)).latent_dist.mode()
    return np.asarray(sampler.frames(latents)[0].numpy(), dtype=np.float32)


def contact_sheet(clips: list[tuple[Case, Array]]) -> npt.NDArray[np.uint8]:
    """Four frames of each clip in a row, rows in three columns."""
    rows = [np.concatenate(list(frames[np.linspace(0, len(frames) - 1, 4).astype(int)]), axis=1) for _, frames in clips]
    rows += [np.ones_like(rows[0])] * (-len(rows) % 3)
    gap = np.ones((4, *rows[0].shape[1:]), np.float32)
    columns = [np.concatenate([part for row in rows[start::3] for part in (row, gap)]) for start in range(3)]
    sheet = np.concatenate(
        [part for column in columns for part in (column, np.ones((len(column), 6, 3), np.float32))], 1
    )
    return np.asarray(sheet.clip(0.0, 1.0) * 255.0 + 0.5, dtype=np.uint8)


def evaluate(sampler: Sampler, settings: Settings, *, clips: int, others: int, out: Path) -> dict[str, object]:
    """All tables: ceilings first, then generated clips by language and by kind."""
    one, two, moving = Mixture(), Mixture(two_objects=1.0), Mixture(moving_camera=1.0)
    seen = draw_cases(clips, one, seed=1)
    report: dict[str, object] = {"settings": {name: getattr(settings, name) for name in Settings.__slots__}}
    tallies: dict[str, Tally] = {}
    everything = [*seen[:others], *draw_cases(others, two, seed=2), *draw_cases(others, moving, seed=3)]
    tallies["ceiling: rendered"] = tally_ground_truth(everything, settings, lambda frames: frames)
    tallies["ceiling: rendered, H.264"] = tally_ground_truth(everything, settings, through_h264)
    errors: list[float] = []

    def reconstruct(frames: Array) -> Array:
        result = through_vae(sampler, frames)
        errors.append(float(np.square(result - frames).mean()))
        return result

    tallies["ceiling: VAE"] = tally_ground_truth(seen[:others], settings, reconstruct)
    report["vae_psnr_db"] = round(float(-10.0 * np.log10(np.mean(errors))), 2)
    kinds = {
        "one object": seen,
        "held-out combinations": draw_cases(others, one, seed=4, held_out=True),
        "two objects": draw_cases(others, two, seed=2),
        "moving camera": draw_cases(others, moving, seed=3),
    }
    sheet: list[tuple[Case, Array]] = []
    readings: list[Reading] = []
    with Progress() as progress:
        bar = progress.add_task("generating", total=sum(map(len, kinds.values())))
        for kind, cases in kinds.items():
            for case, frames in generate(sampler, cases, settings):
                reading = read_back(frames)
                if kind == "one object":
                    readings.append(reading)
                for name in (kind, f"{kind}: {case.language}") if kind == "one object" else (kind,):
                    tallies.setdefault(name, Tally()).add(case.clip, reading)
                if case in cases[: _SHEET_ONE if kind == "one object" else _SHEET_OTHERS]:
                    sheet.append((case, frames))
                progress.advance(bar)
    tallies["shuffled prompts"] = Tally()
    for case, reading in zip(seen, readings[len(seen) // 2 :] + readings[: len(seen) // 2], strict=True):
        tallies["shuffled prompts"].add(case.clip, reading)
    report["results"] = {name: tally.report() for name, tally in tallies.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "contact_sheet.json").write_text(
        json.dumps([case.prompt for case, _ in sheet], indent=1, ensure_ascii=False) + "\n"
    )
    cv2.imwrite(str(out / "contact_sheet.png"), cv2.cvtColor(contact_sheet(sheet), cv2.COLOR_RGB2BGR))
    _show(tallies, report)
    return report


def _show(tallies: dict[str, Tally], report: dict[str, object]) -> None:
    table = Table("clips", "n", *ATTRIBUTES, title=f"read back; VAE {report['vae_psnr_db']} dB")
    for name, tally in tallies.items():
        cells = []
        for attribute in ATTRIBUTES:
            low, high = wilson(tally.hits[attribute], tally.total)
            cells.append(f"{100 * tally.share(attribute):.1f} [{100 * low:.0f}, {100 * high:.0f}]")
        table.add_row(name, str(tally.total), *cells)
    Console(width=160).print(table)


def main() -> None:
    """Evaluates a folder of weights at its manifest's defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=300, help="single-object clips, a third in each language")
    parser.add_argument("--others", type=int, default=90, help="clips of every other kind")
    parser.add_argument("--few-steps", action="store_true", help="with the distilled adapter, four steps, no guidance")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    settings = load_settings(options.weights)
    if options.few_steps:
        sampler: Sampler = load_few_step_sampler(options.weights, options.device)
        settings = few_step_settings(settings)
    else:
        sampler = Sampler.load(options.weights, options.device)
    evaluate(sampler, settings, clips=options.clips, others=options.others, out=options.out)


if __name__ == "__main__":
    main()
