from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest

from services.postprocess.frames import Frames, Pixels
from services.postprocess.inspection import Action, Check, Finding, Inspector, QualityRefused, Rule

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
    pixels[8:16] = (pixels[8:16] * 0.15).astype(np.uint8)
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


def test_a_face_that_falls_apart_in_the_middle_of_the_picture_is_found_and_one_that_leaves_is_not() -> None:
    lost = np.stack([_portrait(shift=30, hidden=index >= 12) for index in range(33)])
    left = np.stack([np.pad(_portrait(), ((0, 0), (0, 160), (0, 0)))[:, 5 * index :][:, :320] for index in range(33)])

    (finding,) = [finding for finding in _findings(lost) if finding.check is Check.FACE]
    assert finding.end > 12 / 16
    assert not [finding for finding in _findings(left) if finding.check is Check.FACE]


def test_a_flash_of_three_frames_is_flicker_as_a_whole(clean: Pixels) -> None:
    clean[12:15] = (clean[12:15] * 0.7).astype(np.uint8)

    (finding,) = [finding for finding in _findings(clean) if finding.check is Check.FLICKER]
    assert (finding.start, finding.end) == (12 / 16, 15 / 16)


def test_a_frame_repeated_with_a_little_noise_is_found(clean: Pixels) -> None:
    noise = np.random.default_rng(0).normal(0, 0.7, clean[11].shape).round()
    clean[12] = np.clip(clean[11] + noise, 0, 255).astype(np.uint8)

    (finding,) = [finding for finding in _findings(clean) if finding.check is Check.FROZEN]
    assert (finding.start, finding.end) == (11 / 16, 13 / 16)


def test_something_small_that_moves_is_not_frozen(moving_square: Draw) -> None:
    still = np.repeat(moving_square(1, width=256, height=192), 33, axis=0)
    for index in range(33):
        still[index, 100:104, 100 + index : 104 + index] = 255

    assert not [finding for finding in _findings(still) if finding.check is Check.FROZEN]


@pytest.mark.parametrize("action", [Action.FAIL, Action.RETRY])
def test_a_refused_clip_is_refused_in_the_chunk_that_makes_it_certain(clean: Pixels, action: Action) -> None:
    inspector = Inspector(fps=FPS, rules={Check.BLACK: Rule(action=action)})
    pixels = _black(clean)

    for first in (0, 4):
        list(inspector.push(Frames(first=first, pixels=pixels[first : first + 4])))
    with pytest.raises(QualityRefused) as refused:
        list(inspector.push(Frames(first=8, pixels=pixels[8:12])))

    finding = refused.value.finding
    assert (finding.check, finding.action, finding.start, finding.end) == (Check.BLACK, action, 8 / 16, 12 / 16)
    assert finding.score > finding.threshold


def test_a_picture_that_stays_is_refused_before_it_goes(clean: Pixels) -> None:
    inspector = Inspector(fps=FPS, rules={Check.FROZEN: Rule(action=Action.FAIL)})
    clean[8:] = clean[8]

    for first in (0, 4, 8):
        list(inspector.push(Frames(first=first, pixels=clean[first : first + 4])))
    with pytest.raises(QualityRefused) as refused:
        list(inspector.push(Frames(first=12, pixels=clean[12:16])))

    assert (refused.value.finding.start, refused.value.finding.end) == (8 / 16, 16 / 16)
