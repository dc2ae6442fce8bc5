"""The breakdown: disjoint parts that add up, the earlier in the chain first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushes.v1.latency_pb2 import Span
from services.gateway.latency import FIELDS, Part, Timeline, disjoint, part_of

INTERVALS = st.lists(st.tuples(st.sampled_from(Part), st.floats(-1, 11), st.floats(-1, 11)), max_size=30)


@given(INTERVALS)
def test_parts_are_disjoint_and_never_more_than_the_whole(intervals):
    seconds = disjoint(intervals, total=10.0)
    assert all(value >= 0.0 for value in seconds.values())
    assert sum(seconds.values()) <= 10.0 + 1e-9


@given(INTERVALS, st.floats(0.0, 10.0))
def test_every_moment_counts_for_the_first_part_that_covers_it(intervals, at):
    covering = [part for part, start, end in intervals if max(0, start) <= at < min(10, end)]
    rest = disjoint([one for one in intervals if one[0] == min(covering, default=None)], total=10.0)
    whole = disjoint(intervals, total=10.0)
    for part in covering[:1]:
        first = min(covering)
        assert whole[first] > 0.0 or rest[first] < 1e-9
        assert part >= first


def test_an_overlap_counts_for_the_earlier_stage():
    seconds = disjoint([(Part.DECODE, 0.0, 4.0), (Part.VIDEO_ENCODE, 1.0, 6.0)], total=10.0)
    assert seconds[Part.DECODE] == pytest.approx(4.0)
    assert seconds[Part.VIDEO_ENCODE] == pytest.approx(2.0)


def test_the_breakdown_adds_up_and_keeps_every_span():
    timeline = Timeline()
    timeline.record("queue", stage="gateway", start=0.0, end=1.0, part=Part.QUEUE)
    inside = [
        Span(name="denoise.step", start_seconds=0.5, duration_seconds=2.0, attributes={"expert": "high_noise"}),
        Span(name="denoise.step", start_seconds=2.5, duration_seconds=1.0, attributes={"expert": "low_noise"}),
    ]
    timeline.record_call("denoise", stage="denoiser", start=1.0, end=5.0, inside=inside)
    found = timeline.breakdown(total=6.0, trace_id="f" * 32)
    assert found.queue_seconds == pytest.approx(1.0)
    assert found.high_noise_seconds == pytest.approx(2.0)
    assert found.low_noise_seconds == pytest.approx(1.0)
    assert found.transfer_seconds == pytest.approx(1.0)
    assert found.other_seconds == pytest.approx(1.0)
    assert sum(getattr(found, name) for name in FIELDS.values()) + found.other_seconds == pytest.approx(6.0)
    assert [span.name for span in found.spans] == ["queue", "denoise", "denoise.step", "denoise.step"]
    assert {span.parent for span in found.spans} == {"", "denoise"}


@pytest.mark.parametrize(
    ("name", "expert", "part"),
    [
        ("encode.text", "", Part.ENCODE),
        ("denoise.step", "expert_high_noise", Part.HIGH_NOISE),
        ("denoise.step", "low_noise", Part.LOW_NOISE),
        ("denoise.preview", "", Part.PREVIEW),
        ("denoise.something.new", "", Part.WITHIN),
        ("render.decode.chunk", "", Part.DECODE),
        ("unheard", "", None),
    ],
)
def test_spans_of_the_stages_have_their_parts(name, expert, part):
    assert part_of(Span(name=name, attributes={"expert": expert})) is part
