"""The quality gate against a small set of the clips that its thresholds were calibrated on (docs/quality-gate.md)."""

import cv2
import pytest
from diffusers import AutoencoderKLWan

from benchmarks.gate import found, inspect
from benchmarks.gate_clips import DAMAGES, clean_clips, damaged_clips
from benchmarks.work import EMBEDDED_MODEL
from services.postprocess.inspection import THRESHOLDS, Check

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
