"""Reports as a table in the terminal and in Markdown, as JSON, and as a plot."""

import datetime as dt
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import torch

from benchmarks.measurement import Figure, Report

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "grpcio": version("grpcio"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(report: Report) -> str:
    """The report as a Markdown table."""
    lines = [f"### {report.title}", "", "| figure | measured | target | |", "|---|---|---|---|"]
    lines += [
        f"| {figure.name} | {_measured(figure)} | {figure.target or ''} | {_verdict(figure)} |"
        for figure in report.figures
    ]
    return "\n".join(lines)


def _measured(figure: Figure) -> str:
    return f"{figure.value:.3g}" + ("" if figure.unit == "ratio" else f" {figure.unit}")


def _verdict(figure: Figure) -> str:
    met = {True: "met", False: "**missed**", None: ""}[figure.met]
    return "; ".join(part for part in (met, figure.note) if part)


def publish(reports: Sequence[Report], label: str = "") -> Path:
    """Write `results/<date>-<n>-core.{json,md,svg}`, or `<date>-<label>`, and return the Markdown file."""
    facts = machine()
    stem = RESULTS / f"{facts['date']}-{label or str(facts['cores']) + '-core'}"
    stem.with_suffix(".json").write_text(
        json.dumps({"machine": facts, "reports": [asdict(report) for report in reports]}, indent=1) + "\n"
    )
    described = ", ".join(f"{name} {value}" for name, value in facts.items())
    stem.with_suffix(".md").write_text("\n\n".join([described, *(table(report) for report in reports)]) + "\n")
    plot(reports, stem.with_suffix(".svg"))
    return stem.with_suffix(".md")


def plot(reports: Sequence[Report], path: Path) -> None:
    """One panel for each report of times: every repetition of every case as a dot, its median as a bar."""
    drawn = [report for report in reports if report.samples]
    if not drawn:
        return
    figure, panels = plt.subplots(len(drawn), 1, figsize=(7, 1.0 + 1.6 * len(drawn)), squeeze=False)
    for panel, report in zip(panels[:, 0], drawn, strict=True):
        names = list(report.samples)
        for row, name in enumerate(names):
            seconds = sorted(report.samples[name])
            panel.barh(row, seconds[len(seconds) // 2], color="#9db8d2")
            panel.plot(seconds, [row] * len(seconds), "o", color="#1f4e79", markersize=3)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(report.title, loc="left", fontsize=9)
        panel.set_xlabel("seconds", fontsize=8)
        panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
