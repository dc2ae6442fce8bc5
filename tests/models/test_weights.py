import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from models.tiny.evaluate import draw_cases, generate
from models.tiny.read_back import read_back
from models.tiny.sampler import Sampler, Settings
from models.tiny.scores import Tally
from models.tiny.train.latent_space import to_signal
from models.tiny.world.clip import Clip, Mixture
from models.tiny.world.render import render
from models.tiny.world.vocabulary import LANGUAGES

PROMPTS = {
    "en": "a red circle moves left over the blue sea",
    "zh": "一个红色的圆形向左移动，在蓝色大海上",
    "ja": "赤い円が青い海の上で左へ動く",
}


def test_every_file_has_the_digest_and_size_that_the_manifest_says(weights: Path) -> None:
    manifest = json.loads((weights / "rushes.json").read_text())
    listed = {path.relative_to(weights).as_posix() for path in weights.rglob("*.safetensors")}
    assert listed <= manifest["files"].keys()
    for name, entry in manifest["files"].items():
        content = (weights / name).read_bytes()
        assert len(content) == entry["size"], name
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
    assert sum(path.stat().st_size for path in weights.rglob("*")) < 30_000_000


def test_the_stock_pipeline_loads_the_folder_and_makes_the_same_clip(
    weights: Path, sampler: Sampler, settings: Settings
) -> None:
    pipeline = WanPipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.boundary_ratio == settings.boundary
    small = replace(settings, width=64, height=64, num_frames=9, steps=4)
    stock = pipeline(
        PROMPTS["zh"],
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=small.guidance_high,
        guidance_scale_2=small.guidance_low,
        max_sequence_length=48,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    frames = sampler.frames(sampler.latents([PROMPTS["zh"]], [7], small))[0].numpy()
    np.testing.assert_allclose(frames, stock, atol=1e-4)


def test_the_same_prompt_in_three_languages_shows_what_it_says(sampler: Sampler, settings: Settings) -> None:
    latents = sampler.latents([PROMPTS[language] for language in LANGUAGES], [1, 2, 3], settings)
    right = 0
    for frames in sampler.frames(latents).numpy():
        reading = read_back(frames)
        assert reading.scene == "sea"
        assert reading.mood == "neutral"
        assert reading.sightings[0].colour == "red"
        right += reading.sightings[0].action == "left"
    assert right >= 2


def test_unseen_prompts_are_read_back_right_and_shuffled_ones_are_not(sampler: Sampler, settings: Settings) -> None:
    cases = draw_cases(12, Mixture(), seed=21)
    right, shuffled = Tally(), Tally()
    for case, frames in generate(sampler, cases, settings):
        reading = read_back(frames)
        right.add(case.clip, reading)
        other = cases[(cases.index(case) + 1) % len(cases)]
        shuffled.add(other.clip, reading)
    for attribute in ("colour", "scene", "mood", "action"):
        assert right.share(attribute) >= 0.75, attribute
    for attribute in ("colour", "scene", "action"):
        assert shuffled.share(attribute) <= 0.5, attribute


def test_a_seed_repeats_to_the_bit_and_another_seed_is_another_clip(sampler: Sampler, settings: Settings) -> None:
    few = replace(settings, steps=6, width=64, height=64)
    first, again, other = (sampler.latents([PROMPTS["en"]], [seed], few) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.1


def test_a_negative_prompt_turns_the_clip_away_from_what_it_says(sampler: Sampler, settings: Settings) -> None:
    dark = "dark and gloomy mood"
    few = replace(settings, steps=10, width=64, height=64)
    prompts = ["a red circle stays still on a green meadow", "a yellow circle moves right in the snow"]
    plain = sampler.frames(sampler.latents(prompts, [1, 2], few))
    away = sampler.frames(sampler.latents(prompts, [1, 2], replace(few, negative_prompt=dark)))
    assert float(away.mean()) > float(plain.mean())


def test_guidance_and_steps_bring_the_clip_closer_to_its_prompt(sampler: Sampler, settings: Settings) -> None:
    cases = draw_cases(8, Mixture(), seed=33)
    small = replace(settings, width=64, height=64)

    def hits(chosen: Settings) -> int:
        tally = Tally()
        for case, frames in generate(sampler, cases, chosen):
            tally.add(case.clip, read_back(frames))
        return sum(tally.hits[name] for name in ("colour", "action", "scene", "mood", "count"))

    full = hits(small)
    assert hits(replace(small, guidance_high=1.0, guidance_low=1.0)) < full
    assert hits(replace(small, steps=2)) < full


@pytest.mark.parametrize(("width", "height", "count"), [(128, 96, 17), (96, 64, 33), (64, 64, 1)])
def test_other_sizes_and_lengths_keep_scene_and_colour(
    sampler: Sampler, settings: Settings, width: int, height: int, count: int
) -> None:
    chosen = replace(settings, width=width, height=height, num_frames=count, steps=12)
    frames = sampler.frames(sampler.latents([PROMPTS["en"]], [4], chosen))[0].numpy()
    assert frames.shape == (count, height, width, 3)
    if count > 1:
        reading = read_back(frames)
        assert reading.scene == "sea"
        assert "red" in {sighting.colour for sighting in reading.sightings}


def test_the_vae_keeps_a_rendered_clip(sampler: Sampler, red_ball: Clip) -> None:
    frames = render(red_ball, width=96, height=96, num_frames=17)
    with torch.inference_mode():
        latents = sampler.vae.encode(to_signal(frames)[None]).latent_dist.mode()
        rebuilt = sampler.frames(latents)[0].numpy()
    assert -10.0 * np.log10(np.square(rebuilt - frames).mean()) > 24.0
    sighting = read_back(rebuilt).sightings[0]
    assert (sighting.colour, sighting.action) == ("red", "left")


def test_the_latent_map_shows_the_clips_colours(weights: Path, sampler: Sampler, red_ball: Clip) -> None:
    latent_rgb = json.loads((weights / "rushes.json").read_text())["latent_rgb"]
    frames = render(red_ball, width=96, height=96, num_frames=17)
    with torch.inference_mode():
        latents = sampler.vae.encode(to_signal(frames)[None]).latent_dist.mode()[0].movedim(0, -1)
    preview = latents @ torch.tensor(latent_rgb["factors"]) + torch.tensor(latent_rgb["bias"])
    red = preview[0, 6, 9].numpy() / 2.0 + 0.5
    np.testing.assert_allclose(red, (0.9, 0.12, 0.12), atol=0.12)
