"""Where the time of a generation went, as rows with bars."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rushes.v1.latency_pb2 import LatencyBreakdown, Span

PARTS = (
    ("queue", "queue"),
    ("encode", "encode text"),
    ("high_noise", "high-noise steps"),
    ("low_noise", "low-noise steps"),
    ("preview", "previews"),
    ("hand_off", "hand-off"),
    ("decode", "decode"),
    ("video_encode", "encode video"),
    ("transfer", "transfer"),
    ("other", "other"),
)
"""Prefixes of the fields of `LatencyBreakdown`, in the order of the chain, and their names for people."""

FOLD_ABOVE = 8
ACCOUNT = "part"
"""The attribute that says for which part of the breakdown a span counts: bookkeeping, not for people."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One bar: when it begins and how long it takes, in seconds, and its share of the whole."""

    label: str
    stage: str
    start_seconds: float
    seconds: float
    share: float
    depth: int = 0


def parts(latency: LatencyBreakdown) -> list[Row]:
    """The disjoint parts that are not nothing, laid end to end."""
    rows, start = [], 0.0
    for field, label in PARTS:
        seconds: float = getattr(latency, f"{field}_seconds")
        if seconds > 0.00005:
            share = _share(seconds, latency)
            rows.append(Row(label=label, stage=field, start_seconds=start, seconds=seconds, share=share))
        start += seconds
    return rows


def parts_sum(latency: LatencyBreakdown) -> float:
    """Seconds of all parts together; the whole is `total_seconds`."""
    return sum(float(getattr(latency, f"{field}_seconds")) for field, _ in PARTS)


def tree(latency: LatencyBreakdown, *, fold: bool = True) -> list[Row]:
    """Every span under its parent, in order of time; more than a few siblings of one name become one row."""
    spans = sorted(latency.spans, key=lambda span: (span.start_seconds, -span.duration_seconds))
    children: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        parent = _parent(span, spans)
        children[id(parent) if parent is not None else 0].append(span)

    def walk(key: int, depth: int) -> Iterator[Row]:
        for group in _groups(children[key], fold=fold):
            yield _row(group, depth, latency)
            for span in group:
                yield from walk(id(span), depth + 1)

    return list(walk(0, 0))


def _parent(span: Span, spans: Sequence[Span]) -> Span | None:
    """Spans name their parent: of several with that name, the last that began before this one did."""
    named = [other for other in spans if other.name == span.parent and other is not span]
    before = [other for other in named if other.start_seconds <= span.start_seconds + 0.001]
    return before[-1] if before else next(iter(named), None)


def _groups(siblings: Sequence[Span], *, fold: bool) -> Iterator[list[Span]]:
    by_name: dict[str, list[Span]] = defaultdict(list)
    for span in siblings:
        by_name[span.name].append(span)
    for span in siblings:
        alike = by_name[span.name]
        if not fold or len(alike) <= FOLD_ABOVE:
            yield [span]
        elif span is alike[0]:
            yield alike


def _row(group: Sequence[Span], depth: int, latency: LatencyBreakdown) -> Row:
    first = group[0]
    seconds = sum(span.duration_seconds for span in group)
    if len(group) > 1:
        label = f"{first.name} × {len(group)}"
    else:
        facts = " ".join(f"{key}={value}" for key, value in sorted(first.attributes.items()) if key != ACCOUNT)
        label = f"{first.name} {facts}".rstrip()
    return Row(
        label=label,
        stage=first.stage,
        start_seconds=first.start_seconds,
        seconds=seconds,
        share=_share(seconds, latency),
        depth=depth,
    )


def bar(row: Row, whole_seconds: float, width: int, *, ascii_only: bool = False) -> str:
    """The row's interval on a line of `width` cells that stands for the whole; never empty, never wider."""
    if whole_seconds <= 0:
        return " " * width
    begin = min(max(row.start_seconds / whole_seconds, 0.0), 1.0) * width
    length = min(row.seconds / whole_seconds * width, width - begin)
    cell = min(int(begin), width - 1)
    full, eighths = divmod(round(length * 8), 8)
    body = "#" * max(round(length), 1) if ascii_only else _EIGHTHS[8] * full + (_EIGHTHS[eighths] if eighths else "")
    return (" " * cell + (body or _EIGHTHS[1]))[:width].ljust(width)


def _share(seconds: float, latency: LatencyBreakdown) -> float:
    return seconds / latency.total_seconds if latency.total_seconds > 0 else 0.0
