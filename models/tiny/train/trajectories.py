"""The teacher's paths for the few-step adapter: guided clips of the full model, kept where the student's steps end.

``python -m models.tiny.train.trajectories --weights DIR --out DIR``; run again, it goes on where it stopped.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from models.tiny.evaluate import WEIGHTS, load_settings
from models.tiny.few_steps import FEW_STEP_SHIFT, FEW_STEPS
from models.tiny.sampler import Sampler, Settings
from models.tiny.train.text_encoder import encode
from models.tiny.world.caption import draw_caption
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.vocabulary import LANGUAGES

_MIXTURE: Final = Mixture(two_objects=0.15, moving_camera=0.15)
_PARTIAL: Final = 0.1


def draw_prompts(seed: int, batch: int, count: int) -> list[str]:
    """The prompts of one batch, languages in turn, none of those kept for evaluation."""
    numbers = np.random.default_rng([seed, batch, 31])
    return [
        draw_caption(numbers, draw_clip(numbers, _MIXTURE), LANGUAGES[(batch + index) % 3], partial=_PARTIAL).text
        for index in range(count)
    ]


def write_batch(sampler: Sampler, settings: Settings, path: Path, *, seed: int, batch: int, count: int) -> None:
    """Writes ``states`` [count, 5, 16, t, h, w] at the student's levels, and the prompts' embeddings ``text``."""
    prompts = draw_prompts(seed, batch, count)
    # The top half of the seeds: evaluation counts from zero.
    seeds = [2**31 + seed * 1_000_000 + batch * count + index for index in range(count)]
    states = torch.stack(sampler.states(prompts, seeds, settings)[:: settings.steps // FEW_STEPS], dim=1)
    with torch.no_grad():
        text = encode(sampler.text_encoder, sampler.tokenizer, prompts, "cpu")
    partial = path.with_suffix(".partial")
    save_file(
        {"states": states.cpu().contiguous(), "text": text.contiguous()}, partial, {"prompts": json.dumps(prompts)}
    )
    partial.replace(path)


def load_trajectories(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Every finished batch of ``folder``: states ``[N, 5, 16, t, h, w]`` and embeddings ``[N, 48, width]``."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat([file["states"] for file in files]), torch.cat([file["text"] for file in files])


def main() -> None:
    """Writes the batches that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the teacher, in diffusers layout")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="clips a batch")
    parser.add_argument("--steps", type=int, default=12, help="the teacher's steps, a multiple of 4")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.steps % FEW_STEPS:
        parser.error(f"--steps must be a multiple of {FEW_STEPS}, not {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler.load(options.weights, options.device)
    settings = replace(
        load_settings(options.weights),
        width=options.size,
        height=options.size,
        steps=options.steps,
        flow_shift=FEW_STEP_SHIFT,
    )
    for batch in track(range(options.batches), description="teaching"):
        path = options.out / f"{batch:05d}.safetensors"
        if not path.exists():
            write_batch(sampler, settings, path, seed=options.seed, batch=batch, count=options.batch)


if __name__ == "__main__":
    main()
