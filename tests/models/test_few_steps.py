import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.tiny.evaluate import draw_cases, generate
from models.tiny.few_steps import (
    FEW_STEP_SHIFT,
    FEW_STEPS,
    FewStepSampler,
    few_step,
    few_step_levels,
    few_step_settings,
    load_few_step_sampler,
    merge,
    read_pairs,
)
from models.tiny.read_back import read_back
from models.tiny.sampler import Sampler, Settings
from models.tiny.scores import Tally
from models.tiny.train.distill import DistillTask, attach, averaged_adapter, starts_of_low
from models.tiny.train.experts import build_expert
from models.tiny.train.export_adapter import add_to_manifest, write_adapter
from models.tiny.train.loop import Trainer
from models.tiny.train.trajectories import draw_prompts, load_trajectories, write_batch
from models.tiny.world.clip import Mixture
from services.denoiser.adapters import read_adapter
from services.denoiser.presets import presets
from services.denoiser.schedule import SigmaRule, Solver, make_schedule
from services.model.manifest import Manifest


@pytest.fixture(scope="module")
def few(weights: Path) -> FewStepSampler:
    return load_few_step_sampler(weights)


def test_the_four_levels_are_those_of_the_draft_preset() -> None:
    schedule = make_schedule(Solver.EULER, SigmaRule.WAN, FEW_STEPS, FEW_STEP_SHIFT)
    assert few_step_levels() == pytest.approx(schedule.sigmas, abs=1e-6)


def test_draft_is_the_published_adapter(weights: Path) -> None:
    draft = next(preset for preset in presets(Manifest.load(weights)) if preset.name == "draft")
    assert (draft.steps, draft.flow_shift, draft.guidance_scale_low) == (FEW_STEPS, FEW_STEP_SHIFT, 1.0)
    assert [use.id for use in draft.adapters] == ["few-step"]


@pytest.mark.parametrize("part", ["high", "low"])
def test_the_denoiser_reads_the_published_adapter_as_the_evaluation_does(
    weights: Path, sampler: Sampler, part: str
) -> None:
    path = weights / "adapters" / f"few_step_{part}.safetensors"
    theirs = read_adapter(path, getattr(sampler, part), torch.float32, torch.device("cpu"))
    ours = read_pairs(path)
    assert theirs.keys() == ours.keys() == attach(build_expert()).keys()
    for layer, (down, up) in ours.items():
        assert torch.equal(theirs[layer].down, down.float())
        assert torch.equal(theirs[layer].up, up.float())


def test_the_adapter_ends_nearer_to_the_full_model_s_clip(
    sampler: Sampler, few: FewStepSampler, settings: Settings
) -> None:
    plain = FewStepSampler(
        tokenizer=sampler.tokenizer,
        text_encoder=sampler.text_encoder,
        high=sampler.high,
        low=sampler.low,
        vae=sampler.vae,
    )
    cases = draw_cases(4, Mixture(), seed=61)
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    goal = sampler.latents(prompts, seeds, replace(settings, steps=12, flow_shift=FEW_STEP_SHIFT))
    error, without = ((chosen.latents(prompts, seeds, settings) - goal).square().mean() for chosen in (few, plain))
    assert error < without


def test_four_steps_show_what_the_prompts_say(few: FewStepSampler, settings: Settings) -> None:
    tally = Tally()
    for case, frames in generate(few, draw_cases(9, Mixture(), seed=62), few_step_settings(settings)):
        tally.add(case.clip, read_back(frames))
    for attribute in ("colour", "scene", "mood", "action"):
        assert tally.share(attribute) >= 0.75, attribute


def test_an_attached_adapter_and_a_merged_one_change_the_expert_alike() -> None:
    torch.manual_seed(1)
    expert = build_expert()
    torch.nn.init.normal_(expert.proj_out.weight, std=0.05)
    merged = build_expert()
    merged.load_state_dict(expert.state_dict())
    pairs = attach(expert)
    for pair in pairs.values():
        torch.nn.init.normal_(pair.up, std=0.1)
    sample, text = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 48, 128)
    before = few_step(merged, sample, 1, text)
    merge(merged, {layer: (pair.down, pair.up) for layer, pair in pairs.items()})
    with torch.no_grad():
        after = few_step(expert, sample, 1, text)
        torch.testing.assert_close(few_step(merged, sample, 1, text), after, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before, after, atol=1e-3)


def test_the_teacher_writes_the_same_paths_again_and_draws_no_evaluation_prompt(
    sampler: Sampler, settings: Settings, tmp_path: Path
) -> None:
    small = replace(settings, width=32, height=32, num_frames=5, steps=4, flow_shift=FEW_STEP_SHIFT)
    for name in ("00000", "again"):
        write_batch(sampler, small, tmp_path / f"{name}.safetensors", seed=1, batch=0, count=2)
    first, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("00000", "again"))
    assert torch.equal(first["states"], again["states"])
    states, text = load_trajectories(tmp_path)
    assert states.shape == (4, FEW_STEPS + 1, 16, 2, 4, 4)
    assert text.shape[:2] == (4, 48)
    kept = {case.prompt for case in draw_cases(30, Mixture(), seed=1)}
    assert kept.isdisjoint(draw_prompts(0, 0, 200))


def test_a_trained_adapter_ends_nearer_to_the_teacher_and_is_published_with_its_digest(
    sampler: Sampler, weights: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    states, text = torch.randn(4, FEW_STEPS + 1, 16, 2, 4, 4), torch.randn(4, 48, 128)
    expert = build_expert()
    expert.load_state_dict(sampler.low.state_dict())
    task = DistillTask(
        part="low",
        expert=expert,
        starts=starts_of_low(sampler.high, states[:, 0], text, "cpu"),
        states=states,
        text=text,
        steps=6,
        batch=4,
        lr=2e-3,
        decay=0.0,
        seed=1,
        device="cpu",
    )
    before = task.loss(0)[0].item()
    Trainer(task, tmp_path / "run", total=6, ema_decay=0.5).run()
    assert task.loss(0)[0].item() < before

    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copyfile(weights / "rushes.json", folder / "rushes.json")
    files = {part: f"adapters/{part}.safetensors" for part in ("high", "low")}
    for name in files.values():
        write_adapter(tmp_path / "run", folder / name)
    add_to_manifest(folder, files)
    entry = Manifest.load(folder).adapters[0]
    assert (entry.high, entry.low, entry.distilled_steps) == (files["high"], files["low"], FEW_STEPS)
    size = json.loads((folder / "rushes.json").read_text())["files"][files["low"]]["size"]
    assert (folder / files["low"]).stat().st_size == size
    for layer, (down, _) in averaged_adapter(tmp_path / "run").items():
        assert torch.equal(read_pairs(folder / files["low"])[layer][0], down.to(torch.bfloat16))
