"""Waterfalls on a console."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rushes.cli.waterfall import Row, bar, parts, parts_sum, tree
from rushes.v1.latency_pb2 import LatencyBreakdown

COLOURS = {
    "encode": "cyan",
    "encoder": "cyan",
    "high_noise": "magenta",
    "low_noise": "blue",
    "denoiser": "magenta",
    "decode": "green",
    "video_encode": "green",
    "postprocess": "green",
    "transfer": "yellow",
    "gateway": "yellow",
}
MAX_LABEL = 44


def print_parts(console: Console, latency: LatencyBreakdown) -> None:
    """The parts end to end, and their sum against the whole."""
    _print_rows(console, parts(latency), latency.total_seconds)
    whole, added = latency.total_seconds, parts_sum(latency)
    share = f" ({added / whole:.1%})" if whole > 0 else ""
    console.print(f"the parts add up to {added:.3f} s of {whole:.3f} s{share}", style="dim")


def print_tree(console: Console, latency: LatencyBreakdown, *, fold: bool) -> None:
    """Every span under its parent."""
    _print_rows(console, tree(latency, fold=fold), latency.total_seconds)


def _print_rows(console: Console, rows: Sequence[Row], whole_seconds: float) -> None:
    if not rows:
        return
    ascii_only = "utf" not in console.encoding.lower()
    labels = [("  " * row.depth + row.label)[:MAX_LABEL] for row in rows]
    label_width = max(map(len, labels))
    bar_width = max(10, min(60, console.width - label_width - 22))
    for row, label in zip(rows, labels, strict=True):
        line = Text(f"{label:<{label_width}} ")
        line.append(bar(row, whole_seconds, bar_width, ascii_only=ascii_only), style=COLOURS.get(row.stage, "white"))
        line.append(f" {row.seconds * 1000:>9.1f} ms {row.share:>6.1%}")
        console.print(line, no_wrap=True, soft_wrap=False, crop=False)
