"""Presets: what `draft`, `standard` and `pro` stand for, and what a manifest makes of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rushes.v1 import sampling_pb2
from services.denoiser.experts import boundary_step
from services.denoiser.presets import presets
from services.denoiser.schedule import SigmaRule, Solver, make_schedule
from services.denoiser.wire import preset_message
from services.model.errors import ModelRefused
from services.model.manifest import Manifest
from tests.denoiser.conftest import Serve

DISTILLED = {
    "files": {name: {"sha256": "0" * 64, "size": 1} for name in ("h.safetensors", "l.safetensors")},
    "adapters": [{"id": "lightning", "high": "h.safetensors", "low": "l.safetensors", "distilled_steps": 4}],
}


def by_name(manifest: Manifest) -> dict[str, Any]:
    return {preset.name: preset_message(preset) for preset in presets(manifest)}


def test_the_reference_offers_half_the_steps_its_own_and_a_quarter_more() -> None:
    named = by_name(Manifest())
    assert list(named) == ["draft", "standard", "pro"]
    assert named["draft"].sampling == sampling_pb2.SamplingSettings(steps=20)
    assert named["standard"].sampling == sampling_pb2.SamplingSettings()
    assert named["pro"].sampling == sampling_pb2.SamplingSettings(steps=50)


def test_pro_stays_within_the_model_s_limit() -> None:
    assert by_name(Manifest.model_validate({"limits": {"max_steps": 45}}))["pro"].sampling.steps == 45


def test_draft_is_the_few_step_mode_of_a_distilled_pair_split_two_and_two() -> None:
    draft = by_name(Manifest.model_validate(DISTILLED))["draft"]
    assert draft.sampling == sampling_pb2.SamplingSettings(
        solver=sampling_pb2.SOLVER_EULER,
        sigma_rule=sampling_pb2.SIGMA_RULE_WAN,
        steps=4,
        flow_shift=5.0,
        guidance_scale_high=1.0,
        guidance_scale_low=1.0,
    )
    assert [(use.id, use.weight_high, use.weight_low) for use in draft.adapters] == [("lightning", 1.0, 1.0)]
    assert boundary_step(make_schedule(Solver.EULER, SigmaRule.WAN, 4, 5.0).timesteps, 0.875) == 2


def test_a_manifest_replaces_and_adds_presets() -> None:
    own = [{"name": "draft", "steps": 7}, {"name": "night", "solver": "dpmpp_2m", "guidance_timestep_max": 900}]
    named = by_name(Manifest.model_validate({"presets": own}))
    assert list(named) == ["draft", "standard", "pro", "night"]
    assert named["draft"].sampling.steps == 7
    assert named["night"].sampling == sampling_pb2.SamplingSettings(
        solver=sampling_pb2.SOLVER_DPMPP_2M, guidance_timestep_max=900
    )


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([{"name": "standard", "steps": 3}], "standard"),
        ([{"name": "a"}, {"name": "a"}], "two presets"),
        ([{"name": "a", "steps": 1000}], "max_steps"),
        ([{"name": "a", "adapters": [{"id": "nobody"}]}], "nobody"),
        ([{"name": "a", "speed": 2}], "speed"),
    ],
)
def test_a_manifest_with_a_wrong_preset_is_refused(untrained: Path, tmp_path: Path, entries: Any, word: str) -> None:
    folder = shutil.copytree(untrained, tmp_path / "model")
    manifest = json.loads((folder / "rushes.json").read_text()) | {"presets": entries}
    (folder / "rushes.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelRefused, match=word):
        Manifest.load(folder)


async def test_a_denoiser_says_its_presets(serve: Serve) -> None:
    async with serve() as caller:
        assert [preset.name for preset in (await caller.describe()).presets] == ["draft", "standard", "pro"]
