import pytest

from rushes.cli.waterfall import Row, bar, parts, parts_sum, tree
from rushes.v1.latency_pb2 import LatencyBreakdown, Span


def row(start: float, seconds: float) -> Row:
    return Row(label="x", stage="gateway", start_seconds=start, seconds=seconds, share=0.0)


@pytest.mark.parametrize(
    ("start", "seconds", "expected"),
    [
        (0.0, 1.0, "████████"),
        (0.0, 0.5, "████    "),
        (0.5, 0.5, "    ████"),
        (0.25, 0.0, "  ▏     "),
        (1.0, 0.0, "       ▏"),
        (0.9, 5.0, "       ▊"),
        (0.0, 0.3125, "██▌     "),
    ],
)
def test_a_bar_stands_where_its_time_is(start: float, seconds: float, expected: str) -> None:
    assert bar(row(start, seconds), 1.0, 8) == expected


def test_a_bar_can_do_without_unicode() -> None:
    assert bar(row(0.5, 0.25), 1.0, 8, ascii_only=True) == "    ##  "


def test_parts_lie_end_to_end_and_nothing_is_left_out_of_the_sum() -> None:
    latency = LatencyBreakdown(total_seconds=2.0, queue_seconds=0.5, decode_seconds=1.0, other_seconds=0.5)

    rows = parts(latency)

    assert [(one.label, one.start_seconds, one.share) for one in rows] == [
        *[("queue", 0.0, 0.25), ("decode", 0.5, 0.5), ("other", 1.5, 0.25)]
    ]
    assert parts_sum(latency) == 2.0


def span(name: str, start: float, seconds: float, parent: str = "") -> Span:
    return Span(name=name, stage="denoiser", start_seconds=start, duration_seconds=seconds, parent=parent)


def test_a_child_goes_to_the_last_parent_of_its_name_that_had_begun() -> None:
    spans = [span("step", 0.1, 0.1, "denoise"), span("denoise", 0.0, 1.0), span("denoise", 2.0, 1.0)]
    spans += [span("step", 2.1, 0.2, "denoise"), span("orphan", 3.0, 0.1, "nobody")]

    rows = tree(LatencyBreakdown(total_seconds=4.0, spans=spans))

    assert [(one.label, one.depth, one.start_seconds) for one in rows] == [
        *[("denoise", 0, 0.0), ("step", 1, 0.1), ("denoise", 0, 2.0), ("step", 1, 2.1), ("orphan", 0, 3.0)]
    ]


def test_many_siblings_of_one_name_are_one_row_unless_all_are_wanted() -> None:
    spans = [span("denoise", 0.0, 4.0), *(span("step", index * 0.1, 0.1, "denoise") for index in range(40))]
    latency = LatencyBreakdown(total_seconds=4.0, spans=spans)

    folded = tree(latency)
    assert [one.label for one in folded] == ["denoise", "step × 40"]
    assert folded[1].seconds == pytest.approx(4.0)
    assert len(tree(latency, fold=False)) == 41


def test_a_span_that_names_itself_as_its_parent_is_a_root() -> None:
    assert [one.depth for one in tree(LatencyBreakdown(total_seconds=1.0, spans=[span("a", 0.0, 1.0, "a")]))] == [0]
