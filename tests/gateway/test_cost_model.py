"""The cost model: A14B's own figures, learning, priors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.cost_model import CostModel, Plan, forward_work, tokens
from services.gateway.spec import high_noise_steps

HD = Plan(model="wan", width=1280, height=720, num_frames=81, high_steps=26, low_steps=14)


def test_tokens_and_work_are_those_of_the_reference():
    assert tokens(1280, 720, 81) == 75_600
    assert tokens(832, 480, 81) == 32_760
    assert forward_work(75_600) / forward_work(32_760) == pytest.approx(6.5 / 1.7, rel=0.01)


def test_the_split_of_the_reference_schedule_is_26_to_14():
    assert high_noise_steps(40, 12.0, 0.875) == 26


def test_measured_steps_become_the_estimate():
    model = CostModel()
    for _ in range(50):
        model.observe_step(HD, high=True, seconds=10.0)
        model.observe_step(HD, high=False, seconds=5.0)
    model.observe_encode(HD, 0.5)
    model.observe_render(HD, 20.0)
    estimate = model.estimate(HD)
    assert estimate.high == pytest.approx(260.0)
    assert estimate.low == pytest.approx(70.0)
    assert estimate.total == pytest.approx(260.0 + 70.0 + 0.5 + 20.0)


def test_a_step_without_guidance_costs_half():
    model = CostModel()
    model.observe_step(HD, high=True, seconds=10.0)
    plain = Plan(**{**{name: getattr(HD, name) for name in Plan.__slots__}, "forwards_high": 1})
    assert model.estimate(plain).high == pytest.approx(model.estimate(HD).high / 2)


def test_a_model_that_was_never_seen_costs_what_the_others_do():
    model = CostModel()
    model.observe_step(HD, high=True, seconds=10.0)
    other = Plan(**{**{name: getattr(HD, name) for name in Plan.__slots__}, "model": "other"})
    assert model.estimate(other).high == pytest.approx(260.0)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_whatever_is_measured_the_estimate_is_finite_and_not_negative(measured):
    model = CostModel()
    for seconds in measured:
        model.observe_step(HD, high=True, seconds=seconds)
        model.observe_render(HD, seconds)
    assert math.isfinite(model.estimate(HD).total) or any(abs(seconds) > 1e300 for seconds in measured)
    assert model.estimate(HD).total >= 0.0
