import numpy as np
import pytest

from services.postprocess.mark_basis import CANVAS, WHOLE, Span, analysed, analysis, synthesis, synthesised, whole
from services.postprocess.mark_carriers import STEPS, Carriers
from services.postprocess.mark_code import BITS, payload
from services.postprocess.mark_place import Place, cropped_places, refined
from services.postprocess.mark_trellis import coded_length, protect, recover


def test_a_tenth_of_the_coded_bits_may_be_wrong() -> None:
    random = np.random.default_rng(1)
    for mark_id in (0, 1, 2**64 - 1):
        bits = payload(mark_id)
        said = np.where(protect(bits), 1.0, -1.0).astype(np.float32)
        said[random.choice(len(said), len(said) // 10, replace=False)] *= -1
        assert ((recover(said) > 0) == bits).all()


def test_every_bit_costs_three_and_eight_more_lead_back() -> None:
    assert len(protect(payload(7))) == coded_length(BITS) == 3 * (BITS + 8)
    assert recover(np.ones(coded_length(BITS), np.float32)).shape == (BITS,)


@pytest.mark.parametrize("pixels", [240, 480, 854])
def test_waves_are_orthonormal_at_every_size(pixels: int) -> None:
    units = CANVAS / pixels
    np.testing.assert_allclose(whole(pixels) @ whole(pixels).T / units, np.eye(len(whole(pixels))), atol=1e-3)
    np.testing.assert_allclose(whole(pixels) @ synthesis(pixels), np.eye(len(whole(pixels))), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(480, 854), (192, 192), (60, 100)])
def test_leaving_out_what_is_nothing_changes_nothing(height: int, width: int) -> None:
    picture = np.random.default_rng(5).normal(0, 50, (height, width)).astype(np.float32)
    coefficients = whole(height) @ picture @ whole(width).T

    np.testing.assert_allclose(analysed(picture), coefficients, atol=1e-2)
    spread = synthesis(height) @ coefficients @ synthesis(width).T
    np.testing.assert_allclose(synthesised(coefficients, height, width), spread, atol=1e-2)


def test_a_crop_leaves_the_waves_of_its_own_cells() -> None:
    line = np.random.default_rng(2).normal(size=512).astype(np.float32)
    cropped = Span(begin=16.0, length=224.0)
    seen = np.repeat(cropped.inside(0), len(whole(512)) // len(cropped.inside(0)))

    assert 0 < seen.sum() < len(seen)
    np.testing.assert_allclose((analysis(448, cropped) @ line[32:480])[seen], (whole(512) @ line)[seen], atol=1e-3)
    assert WHOLE.inside(0).all()


@pytest.mark.parametrize("step", STEPS)
def test_a_change_moves_no_chip_by_more_than_half_a_step(step: float) -> None:
    carriers = Carriers()
    before = np.random.default_rng(3).normal(0, 60, (len(whole(CANVAS)),) * 2).astype(np.float32)
    change = carriers.change(before, protect(payload(9)), step)
    after = carriers.chips(before + change, Place().seen(), step)

    assert after.agreement == pytest.approx(1, abs=1e-3)
    assert ((carriers.bits(after.values) > 0) == payload(9)).all()
    assert carriers.synced(before + change) >= 5 * step * 0.999
    assert float((change**2).sum()) < 1024 * step**2 / 4 + (5 * step + 4 * 60) ** 2


def test_a_crop_is_found_to_a_fraction_of_a_unit() -> None:
    carriers = Carriers()
    noise = np.random.default_rng(4).normal(0, 4, (480, 512)).astype(np.float32)
    change = carriers.change(whole(480) @ noise @ whole(512).T, protect(payload(11)), STEPS[0])
    marked = noise + synthesis(480) @ change @ synthesis(512).T

    ((sureness, place),) = cropped_places(marked[20:452, 40:501], carriers, 1)
    found = refined(marked[20:452, 40:501], carriers, place)
    assert sureness > 6
    assert (found.across.begin, found.across.length) == pytest.approx((20, 230.5), abs=0.25)
    assert (found.down.begin, found.down.length) == pytest.approx((20 / 480 * CANVAS, 230.4), abs=0.25)
