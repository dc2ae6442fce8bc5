"""What a benchmark measures: interleaved repetitions on the same work, and figures with their targets."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


def card_or_small(name: str, *, small: bool) -> torch.device:
    """Where a benchmark of full size runs: a GPU; exits where none is visible, unless the size is `small`."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not small:
        raise SystemExit(f"{name} needs an NVIDIA GPU: none is visible. --small runs the same harness on the CPU.")
    return torch.device("cpu")


def place(device: torch.device) -> str:
    """What `device` is called in a title."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number. `target` is the bound it is held against, None where it is only reported."""

    name: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The figures of one benchmark, and the raw seconds of each case behind them."""

    title: str
    figures: tuple[Figure, ...]
    samples: Mapping[str, Sequence[float]]


def at_most(name: str, value: float, bound: float, unit: str = "ratio", note: str = "") -> Figure:
    """A figure that should not exceed `bound`."""
    return Figure(name=name, value=value, unit=unit, target=f"<= {bound:g}", met=bool(value <= bound), note=note)


def at_least(name: str, value: float, bound: float, unit: str = "ratio", note: str = "") -> Figure:
    """A figure that should reach `bound`."""
    return Figure(name=name, value=value, unit=unit, target=f">= {bound:g}", met=bool(value >= bound), note=note)


async def interleave(cases: Mapping[str, Callable[[], Awaitable[object]]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times in turn, the order reversed every other round, after one warm-up each.

    Taking turns spreads whatever else the machine does over all cases alike.
    """
    for case in cases.values():
        await case()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats):
        order = list(cases.items())
        for name, case in order if repeat % 2 == 0 else reversed(order):
            start = time.perf_counter()
            await case()
            samples[name].append(time.perf_counter() - start)
    return samples


def ratio(samples: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """Median over the rounds of `of`'s seconds divided by `to`'s in the same round."""
    return statistics.median(a / b for a, b in zip(samples[of], samples[to], strict=True))
