from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest

from services.postprocess.frames import Frames, Pixels
from services.postprocess.inspection import Action, Check, Finding, Inspector, Rule

Draw = Callable[..., Pixels]
FPS = Fraction(16)


def _findings(pixels: Pixels, rules: dict[Check, Rule] | None = None) -> list[Finding]:
    inspector = Inspector(fps=FPS, rules=rules)
    for first in range(0, len(pixels), 4):
        (passed,) = inspector.push(Frames(first=first, pixels=pixels[first : first + 4]))
        assert np.shares_memory(passed.pixels, pixels)
    assert list(inspector.flush()) == []
    return inspector.findings


@pytest.fixture
def clean(moving_square: Draw) -> Pixels:
    return moving_square(33, width=128, height=96)


def _black(pixels: Pixels) -> Pixels:
    pixels[8:16] = 3
    return pixels


def _frozen(pixels: Pixels) -> Pixels:
    pixels[8:16] = pixels[8]
    return pixels


def _duplicated(pixels: Pixels) -> Pixels:
    pixels[12] = pixels[11]
    return pixels


def _flicker(pixels: Pixels) -> Pixels:
    pixels[9:16:2] = (pixels[9:16:2] * 0.8).astype(np.uint8)
    return pixels


def _dark(pixels: Pixels) -> Pixels:
    pixels[8:16] //= 10
    pixels[8:16, :20, :40] = 90
    return pixels


def _bright(pixels: Pixels) -> Pixels:
    pixels[8:16] = np.clip(pixels[8:16].astype(int) * 2 + 140, 0, 255).astype(np.uint8)
    return pixels


def _blurred(pixels: Pixels) -> Pixels:
    for index in range(8, 16):
        pixels[index] = cv2.GaussianBlur(pixels[index], (0, 0), 12)
    return pixels


def _blocky(pixels: Pixels) -> Pixels:
    for index in range(8, 16):
        coarse = pixels[index].reshape(12, 8, 16, 8, 3).mean(axis=(1, 3))
        pixels[index] = (coarse.repeat(8, 0).repeat(8, 1) * 0.7 + pixels[index] * 0.3).astype(np.uint8)
    return pixels


DAMAGES = [
    (_black, Check.BLACK, 8, 16),
    (_frozen, Check.FROZEN, 8, 16),
    (_duplicated, Check.FROZEN, 11, 13),
    (_flicker, Check.FLICKER, 8, 16),
    (_dark, Check.UNDEREXPOSED, 8, 16),
    (_bright, Check.OVEREXPOSED, 8, 16),
    (_blurred, Check.BLUR, 8, 16),
    (_blocky, Check.BLOCKING, 8, 16),
]


@pytest.mark.parametrize(("damage", "check", "first", "end"), DAMAGES, ids=[d[0].__name__.strip("_") for d in DAMAGES])
def test_a_damaged_clip_is_found_out_with_its_range(
    clean: Pixels, damage: Callable[[Pixels], Pixels], check: Check, first: int, end: int
) -> None:
    findings = [finding for finding in _findings(damage(clean.copy())) if finding.check is check]

    assert findings
    assert min(finding.start for finding in findings) == pytest.approx(first / 16, abs=1.01 / 16)
    assert max(finding.end for finding in findings) == pytest.approx(end / 16, abs=1.01 / 16)
    assert all(finding.score > 0 and finding.action is Action.NOTE for finding in findings)


def test_a_clean_clip_has_no_findings(clean: Pixels) -> None:
    assert _findings(clean) == []


def test_a_cut_is_no_flicker(clean: Pixels) -> None:
    clean[16:] = 255 - clean[16:]

    assert _findings(clean) == []


def test_a_rule_moves_the_threshold_and_sets_the_action(clean: Pixels) -> None:
    rules = {Check.OVEREXPOSED: Rule(action=Action.WARN, threshold=-1.0), Check.BLACK: Rule(threshold=2.0)}

    findings = _findings(_black(clean), rules)

    assert {finding.check for finding in findings} >= {Check.OVEREXPOSED}
    assert not [finding for finding in findings if finding.check is Check.BLACK]
    over = next(finding for finding in findings if finding.check is Check.OVEREXPOSED)
    assert (over.action, over.threshold, over.start, over.end) == (Action.WARN, -1.0, 0.0, 33 / 16)


def _portrait(shift: int = 0, scale: float = 1.0, *, hidden: bool = False) -> Pixels:
    data = pytest.importorskip("skimage.data")
    picture = cv2.resize(data.astronaut()[0:256, 96:352], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas = np.full((256, 320, 3), 90, np.uint8)
    canvas[: picture.shape[0], shift : shift + picture.shape[1]] = picture
    if hidden:
        canvas[40:170, shift + 60 : shift + 200] = 90
    return canvas


def test_a_face_that_moves_a_little_is_clean() -> None:
    frames = np.stack([_portrait(shift=index) for index in range(17)])

    assert not [finding for finding in _findings(frames) if finding.check is Check.FACE]


def test_a_face_that_changes_its_size_and_vanishes_is_found() -> None:
    frames = np.stack(
        [_portrait(scale=1.0 if index // 2 % 2 else 0.5, hidden=index // 2 % 3 == 2) for index in range(33)]
    )

    (finding,) = [finding for finding in _findings(frames) if finding.check is Check.FACE]
    assert finding.score > 0.5
