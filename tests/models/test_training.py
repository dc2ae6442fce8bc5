from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from models.tiny.sampler import Sampler
from models.tiny.train.distill import DistillTask
from models.tiny.train.experts import ExpertTask, build_expert, unshift
from models.tiny.train.latent_space import LatentSpace, fit, to_signal
from models.tiny.train.loop import Task, Trainer, averaged_weights
from models.tiny.train.text_encoder import TextTask
from models.tiny.train.tokenizer import build_tokenizer
from models.tiny.train.vae import VaeTask
from models.tiny.world.caption import canonical_caption
from models.tiny.world.clip import Clip, Mixture, draw_clip, draw_sibling
from models.tiny.world.render import render

# torch's autocast feeds bfloat16 activations to rms_norm's float32 weights, as intended; it says so once.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture(scope="module")
def latent_space() -> LatentSpace:
    return fit(clips=12, size=32)


def _text_task(_: LatentSpace, __: Sampler) -> Task:
    return TextTask(build_tokenizer(), steps=4, batch=6, lr=1e-3, decay=0.5, seed=3, device="cpu")


def _vae_task(latent_space: LatentSpace, _: Sampler) -> Task:
    return VaeTask(latent_space, size=32, frames=5, steps=4, batch=1, lr=1e-3, decay=0.5, seed=3, device="cpu")


def _expert_task(part: str, **changes: Any) -> Callable[[LatentSpace, Sampler], ExpertTask]:
    def build(latent_space: LatentSpace, sampler: Sampler) -> ExpertTask:
        return ExpertTask(
            part=part,
            tokenizer=sampler.tokenizer,
            text_encoder=sampler.text_encoder,
            latent_space=latent_space,
            mixture=Mixture(two_objects=0.5, moving_camera=0.5),
            size=32,
            frames=5,
            steps=4,
            lr=1e-3,
            warm_up=2,
            decay=0.5,
            seed=3,
            device="cpu",
            **{"batch": 2, **changes},
        )

    return build


def _distill_task(part: str) -> Callable[[LatentSpace, Sampler], Task]:
    def build(_: LatentSpace, __: Sampler) -> Task:
        torch.manual_seed(5)
        expert = build_expert()
        torch.nn.init.normal_(expert.proj_out.weight, std=0.05)
        return DistillTask(
            part=part,
            expert=expert,
            starts=torch.randn(6, 16, 2, 4, 4),
            states=torch.randn(6, 5, 16, 2, 4, 4),
            text=torch.randn(6, 48, 128),
            steps=4,
            batch=4,
            lr=1e-3,
            decay=0.5,
            seed=3,
            device="cpu",
        )

    return build


@pytest.mark.parametrize(
    "build",
    [
        _text_task,
        _vae_task,
        _expert_task("base"),
        _expert_task("high"),
        _expert_task("low"),
        _expert_task("low", siblings=True, lowest_sigma=0.5),
        _distill_task("high"),
        _distill_task("low"),
    ],
    ids=["text encoder", "vae", "base", "high", "low", "siblings", "few steps, high", "few steps, low"],
)
def test_an_interrupted_training_resumes_to_the_same_bits(
    build: Callable[[LatentSpace, Sampler], Task], latent_space: LatentSpace, sampler: Sampler, tmp_path: Path
) -> None:
    Trainer(build(latent_space, sampler), tmp_path / "whole", total=3).run()
    Trainer(build(latent_space, sampler), tmp_path / "parts", total=3).run(steps=1)
    resumed = Trainer(build(latent_space, sampler), tmp_path / "parts", total=3)
    assert resumed.resume()
    assert resumed.step == 1
    resumed.run()
    whole = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    parts = load_file(tmp_path / "parts" / "checkpoint.safetensors")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    assert (tmp_path / "parts" / "loss.png").stat().st_size > 1000


def test_training_lowers_the_loss_of_a_fixed_step(sampler: Sampler, latent_space: LatentSpace, tmp_path: Path) -> None:
    task = _expert_task("base")(latent_space, sampler)
    before = task.loss(0)[0].item()
    trainer = Trainer(task, tmp_path, total=4)
    task.learning_rate = lambda _step: 2e-3  # type: ignore[method-assign] # a rate that four steps can show
    trainer.run()
    assert task.loss(0)[0].item() < before
    assert averaged_weights(tmp_path, "model").keys() == dict(task.modules["model"].named_parameters()).keys()


def test_each_expert_sees_only_its_side_of_the_boundary() -> None:
    assert 3.0 * unshift(0.875) / (1.0 + 2.0 * unshift(0.875)) == pytest.approx(0.875)
    assert unshift(1.0) == 1.0
    assert unshift(0.0) == 0.0


def test_a_training_beside_siblings_takes_an_even_number_of_clips_above_its_lowest_noise(
    sampler: Sampler, latent_space: LatentSpace
) -> None:
    task = _expert_task("low", siblings=True, lowest_sigma=0.5, batch=4)(latent_space, sampler)
    assert (task.lowest, task.highest) == (unshift(0.5), unshift(0.875))
    with pytest.raises(ValueError, match="batch: must be even"):
        _expert_task("low", siblings=True, batch=3)(latent_space, sampler)
    with pytest.raises(ValueError, match=r"lowest_sigma: must be below 0\.875"):
        _expert_task("low", lowest_sigma=0.9)(latent_space, sampler)


def test_a_sibling_differs_in_one_thing_and_says_so() -> None:
    numbers = np.random.default_rng(8)
    changed: Counter[str] = Counter()
    for _ in range(200):
        clip = draw_clip(numbers, Mixture(two_objects=0.5, moving_camera=0.7))
        sibling = draw_sibling(numbers, clip)
        assert not sibling.held_out
        assert (sibling.scene, sibling.mood, sibling.phase) == (clip.scene, clip.mood, clip.phase)
        pairs = list(zip(clip.actors, sibling.actors, strict=True))
        kinds = {
            "camera": sibling.camera != clip.camera,
            "colour": any(one.colour != other.colour for one, other in pairs),
            "shape": any(one.shape != other.shape for one, other in pairs),
        }
        assert sum(kinds.values()) == 1
        assert {actor.colour for actor in sibling.actors} == {actor.colour for actor in clip.actors}
        assert all(replace(one, colour="", shape="") == replace(other, colour="", shape="") for one, other in pairs)
        assert canonical_caption(sibling, "en") != canonical_caption(clip, "en")
        changed.update(kind for kind, holds in kinds.items() if holds)
    assert min(changed[kind] for kind in ("camera", "colour", "shape")) > 20


def test_latent_codes_have_unit_scale_and_rebuild_the_frames(latent_space: LatentSpace, red_ball: Clip) -> None:
    frames = to_signal(render(red_ball, width=64, height=64, num_frames=17))[None]
    latents = latent_space.encode(frames)
    assert latents.shape == (1, 16, 5, 8, 8)
    assert 0.5 < float(latents.square().mean().sqrt()) < 2.0
    error = (latent_space.decode(latents) - frames).square().mean() / 4.0
    assert float(-10.0 * torch.log10(error)) > 24.0


def test_the_tokenizer_survives_saving_and_knows_every_caption(tmp_path: Path, sampler: Sampler) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A RED circle, moves left", "一个红色的圆形向左移动，在蓝色大海上", "赤い円が青い海の上で左へ動く"):
        ids = loaded(text).input_ids
        assert ids == sampler.tokenizer(text).input_ids
        assert loaded.unk_token_id not in ids
        assert ids[-1] == loaded.eos_token_id == 1
        assert len(ids) < 16
    assert loaded("").input_ids == [1]
    assert loaded.pad_token_id == 0


def test_every_random_clip_fits_the_world() -> None:
    numbers = np.random.default_rng(2)
    for _ in range(200):
        clip = draw_clip(numbers, Mixture(two_objects=0.5, moving_camera=0.5))
        for actor in clip.actors:
            for x, y in (actor.start, actor.end):
                assert 0.1 < x < 0.9
                assert 0.1 < y < 0.9
