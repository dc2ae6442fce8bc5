"""The quality gate against a small set of the clips that its thresholds were calibrated on (docs/quality-gate.md)."""

import pytest
from diffusers import AutoencoderKLWan

from benchmarks.gate import found, inspect
from benchmarks.gate_clips import DAMAGES, clean_clips, damaged_clips
from benchmarks.work import EMBEDDED_MODEL
from services.postprocess.inspection import THRESHOLDS, Check


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(EMBEDDED_MODEL / "vae").eval()


def test_none_of_the_clean_clips_has_a_finding(vae: AutoencoderKLWan) -> None:
    findings = {
        f"{place} {clip.source}": found(inspect(clip)) for place, clip in enumerate(clean_clips(2, seed=1, vae=vae))
    }

    assert len(findings) == 20
    assert not {source: checks for source, checks in findings.items() if checks}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_by_its_check(name: str, vae: AutoencoderKLWan) -> None:
    check, _ = DAMAGES[name]

    for clip in damaged_clips(name, 3, seed=1, vae=vae):
        assert check in found(inspect(clip)), clip.source


def test_every_check_of_pictures_has_a_damage() -> None:
    assert (
        {check for check, _ in DAMAGES.values()}
        == set(Check) - {Check.NOT_FINITE}
        == set(THRESHOLDS) - {Check.NOT_FINITE}
    )
