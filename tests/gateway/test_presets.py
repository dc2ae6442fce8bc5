"""Presets resolve to settings that the generation repeats; explicit fields win."""

import pytest

from rushes.v1 import catalog_pb2, denoiser_pb2, finishing_pb2, sampling_pb2
from rushes.v1.generation_pb2 import GenerationSpec
from services.chassis.errors import InvalidRequest
from services.gateway.spec import fingerprint, plan, render_start, resolve, settings_digest
from tests.gateway.stage_servers import DEFAULTS

DRAFT = denoiser_pb2.Preset(
    name="draft",
    sampling=sampling_pb2.SamplingSettings(steps=4, flow_shift=5.0, guidance_scale_high=1.0),
    adapters=[denoiser_pb2.AdapterUse(id="lightning", weight_low=0.5)],
)
MODEL = catalog_pb2.Model(
    id="m",
    defaults=DEFAULTS,
    limits=denoiser_pb2.ModelLimits(max_width=256, max_height=256, max_frames=81, max_steps=100),
    presets=[DRAFT, denoiser_pb2.Preset(name="standard")],
)


def resolved(**fields: object) -> GenerationSpec:
    return resolve(GenerationSpec(prompt="a red circle", **fields), MODEL, seed=1)  # type: ignore[arg-type]


def test_a_preset_fills_in_what_is_left_out_and_is_repeated():
    spec = resolved(preset="draft")
    assert spec.preset == "draft"
    assert spec.sampling.steps == 4
    assert spec.sampling.guidance_scale_high == 1.0
    assert spec.sampling.guidance_scale_low == DEFAULTS.sampling.guidance_scale_low
    assert [(use.id, use.weight_low) for use in spec.adapters] == [("lightning", 0.5)]


def test_explicit_fields_win_over_the_preset():
    spec = resolved(
        preset="draft",
        sampling=sampling_pb2.SamplingSettings(steps=6),
        adapters=[denoiser_pb2.AdapterUse(id="other")],
    )
    assert spec.sampling.steps == 6
    assert spec.sampling.flow_shift == 5.0
    assert [use.id for use in spec.adapters] == ["other"]


def test_no_preset_is_standard_which_is_the_model_s_defaults():
    assert resolved().preset == "standard"
    assert resolved().sampling == DEFAULTS.sampling
    assert resolved() == resolved(preset="standard")


def test_a_model_that_names_no_presets_has_standard():
    bare = catalog_pb2.Model()
    bare.CopyFrom(MODEL)
    bare.ClearField("presets")
    assert resolve(GenerationSpec(prompt="a", preset="standard"), bare, seed=1).sampling == DEFAULTS.sampling


def test_an_unknown_preset_is_refused_with_the_field_and_the_list():
    with pytest.raises(InvalidRequest) as refused:
        resolved(preset="fast")
    (violation,) = refused.value.violations
    assert violation.field == "spec.preset"
    assert violation.rule == "must be one of: draft, standard"


def test_the_same_settings_are_the_same_clip_however_they_were_asked_for():
    written_out = resolved(sampling=DRAFT.sampling, adapters=DRAFT.adapters)
    assert fingerprint(resolved(preset="draft"), "f") == fingerprint(written_out, "f")
    assert fingerprint(resolved(reuse_prefix=True), "f") == fingerprint(resolved(), "f")
    assert fingerprint(resolved(preset="draft"), "f") != fingerprint(resolved(), "f")


def test_postprocess_is_told_seed_and_settings_and_the_prompt_only_where_it_is_to_be_declared():
    silent, telling = (render_start(resolved(declare_prompt=declared)).making for declared in (False, True))
    assert (silent.seed, silent.settings_sha256, silent.prompt) == (1, settings_digest(resolved()), "")
    assert telling.prompt == "a red circle"


def test_the_digest_of_the_settings_tells_nothing_of_texts_and_seed():
    words = finishing_pb2.FinishPlan(label=finishing_pb2.Label(text="hello"), subtitles="hello", watermark_id=7)
    plain = settings_digest(resolved())
    assert settings_digest(resolved(negative_prompt="no", seed=3, declare_prompt=True, preset="standard")) == plain
    assert settings_digest(resolved(finish=words)) == plain
    assert settings_digest(resolved(sampling=sampling_pb2.SamplingSettings(steps=3))) != plain
    assert settings_digest(resolved(finish=finishing_pb2.FinishPlan(upscale=2))) != plain


def test_an_interval_of_guidance_is_counted_in_the_cost():
    whole, half = plan(resolved()), plan(resolved(sampling=sampling_pb2.SamplingSettings(guidance_timestep_min=900)))
    assert (whole.forwards_high, whole.forwards_low) == (2.0, 2.0)
    assert 1.0 < half.forwards_high <= 2.0
    assert half.forwards_low == 1.0
