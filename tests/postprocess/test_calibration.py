"""The quality gate against a small set of the clips that its thresholds were calibrated on (docs/quality-gate.md)."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks.gate import found, inspect
from benchmarks.gate_clips import DAMAGES, GateClip, clean_clips, damaged_clips, decoded
from benchmarks.work import EMBEDDED_MODEL
from services.model.folder import ModelFolder
from services.postprocess.frames import Frames
from services.postprocess.inspection import THRESHOLDS, Check
from services.postprocess.upscale import Upscalers, load_upscalers

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    cv2.setNumThreads(1)
    return AutoencoderKLWan.from_pretrained(EMBEDDED_MODEL / "vae").eval()


@pytest.mark.parametrize("seed", [1, 2])
def test_none_of_the_clean_clips_has_a_finding(seed: int, vae: AutoencoderKLWan) -> None:
    findings = {clip.source: found(inspect(clip)) for clip in clean_clips(1, seed=seed, vae=vae)}

    assert len(findings) == 10
    assert not {source: checks for source, checks in findings.items() if checks}


@pytest.fixture(scope="module")
def upscalers() -> Upscalers:
    folder = ModelFolder(EMBEDDED_MODEL)
    return load_upscalers(folder, torch.device("cpu"), threads=1, runtime="torch", tile=512, margin=32)


def enlarged(clip: GateClip, upscalers: Upscalers, name: str, factor: int) -> GateClip:
    (item,) = upscalers.stage(name, factor).push(Frames(first=0, pixels=clip.pixels))
    return replace(clip, pixels=item.pixels, scale=factor)


@pytest.mark.parametrize(("name", "factor"), [("srvgg-x2", 2), ("lanczos", 2), ("srvgg-x2", 4)])
def test_a_clip_that_was_enlarged_is_judged_as_the_model_gave_it(
    name: str, factor: int, vae: AutoencoderKLWan, upscalers: Upscalers
) -> None:
    for seed in range(3):
        clip = enlarged(decoded(np.random.default_rng([9, seed]), vae), upscalers, name, factor)
        assert not found(inspect(clip))
        for damage in ("blur", "blocking"):
            check, change = DAMAGES[damage]
            damaged = replace(clip, pixels=change(clip.pixels, np.random.default_rng(seed)))
            assert check in found(inspect(damaged))


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_by_its_check(name: str, vae: AutoencoderKLWan) -> None:
    check, _ = DAMAGES[name]

    for clip in damaged_clips(name, 2, seed=1, vae=vae):
        assert check in found(inspect(clip)), clip.source


def test_every_check_of_pictures_has_a_damage() -> None:
    assert (
        {check for check, _ in DAMAGES.values()}
        == set(Check) - {Check.NOT_FINITE}
        == set(THRESHOLDS) - {Check.NOT_FINITE}
    )
