"""Free and paid tenants on A14B under overload, by the gateway's own fair queue: `python -m tests.gateway.simulation`.

Discrete events in device-steps. A step of one expert takes `STEP_SECONDS` on every device, which is the work of a
forward over 75,600 tokens with guidance at the pace of an eight-card node of the reference's table; only the ratio of
waits to the length of a step matters here. Priority work takes the device from lighter work between two steps, and the
work that yields goes on later from the same step.
"""

import heapq
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.gateway.fair_queue import TIERS, FairQueue, Tier, Work, victim

STEP_SECONDS = 6.0
STEPS = 40
DEVICES = 4
DRAFT, STANDARD, PRIORITY, _ = TIERS


@dataclass(slots=True)
class _Run:
    work: Work
    steps_left: int
    begun: float


@dataclass(slots=True)
class Waits:
    """Seconds from arrival to the first step, by tier; and generations that never began."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    finished: int = 0

    def quantile(self, tier: Tier, share: float) -> float:
        """The wait that `share` of the tier's generations did not exceed."""
        found = sorted(self.seconds.get(tier.name, [0.0]))
        return found[min(len(found) - 1, int(share * len(found)))]


def arrivals(tier: Tier, *, load: float, seconds: float, tenants: int, seed: int) -> list[tuple[float, Work]]:
    """Poisson arrivals that ask for `load` of all devices."""
    chance = random.Random(seed)
    cost = STEPS * STEP_SECONDS
    now, made, rate = 0.0, [], load * DEVICES / cost
    while (now := now + chance.expovariate(rate)) < seconds:
        tenant = f"{tier.name}-{chance.randrange(tenants)}"
        work = Work(key=f"{tier.name}{len(made)}", tenant=tenant, tier=tier, cost=cost, created=now)
        made.append((now, work))
    return made


def simulate(asked: Sequence[tuple[float, Work]], *, seconds: float, preempts: bool = True) -> Waits:
    """Serve `asked` on all devices for so long."""
    queue, waits = FairQueue(), Waits()
    coming = sorted(asked, key=lambda one: one[0])
    yielded: dict[str, int] = {}
    running: dict[int, _Run] = {}
    boundaries: list[tuple[float, int]] = [(0.0, device) for device in range(DEVICES)]
    place = 0
    while boundaries and boundaries[0][0] < seconds:
        now, device = heapq.heappop(boundaries)
        while place < len(coming) and coming[place][0] <= now:
            queue.push(coming[place][1])
            place += 1
        run = running.get(device)
        if run is not None and run.steps_left == 0:
            waits.finished += 1
            run = None
            del running[device]
        if run is not None and preempts and queue.waiting(PRIORITY):
            others = [(one.work.tier, one.begun, one.work.key) for one in running.values()]
            if victim(PRIORITY, others) == run.work.key:
                yielded[run.work.key] = run.steps_left
                queue.push(run.work)
                run = None
                del running[device]
        if run is None:
            work = queue.pop()
            if work is None:
                later = coming[place][0] if place < len(coming) else seconds
                heapq.heappush(boundaries, (max(now, later), device))
                continue
            if work.key not in yielded:
                waits.seconds.setdefault(work.tier.name, []).append(now - work.created)
            run = running[device] = _Run(work=work, steps_left=yielded.pop(work.key, STEPS), begun=now)
        run.steps_left -= 1
        heapq.heappush(boundaries, (now + STEP_SECONDS, device))
    return waits


def main() -> None:
    """Print waits by tier for a growing free load, and plot them to the file that is named, if one is."""
    seconds, loads = 40 * 3600.0, [0.5, 1.0, 2.0, 3.0, 5.0]
    rows = []
    for load in loads:
        paid = arrivals(PRIORITY, load=0.3, seconds=seconds, tenants=10, seed=1)
        free = arrivals(DRAFT, load=load, seconds=seconds, tenants=50, seed=2)
        waits = simulate(paid + free, seconds=seconds)
        rows.append((load, waits.quantile(PRIORITY, 0.95), waits.quantile(DRAFT, 0.5), waits.quantile(DRAFT, 0.95)))
        sys.stdout.write(
            f"free load {load:3.1f}: paid p95 {rows[-1][1]:7.1f} s, free median {rows[-1][2]:9.1f} s, "
            f"free p95 {rows[-1][3]:9.1f} s\n"
        )
    if len(sys.argv) > 1:
        plot(rows, Path(sys.argv[1]))


def plot(rows: Sequence[tuple[float, float, float, float]], path: Path) -> None:
    """Waits over the free load."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only whoever plots needs it

    figure, axes = plt.subplots(figsize=(6, 4))
    for column, label in ((1, "paid p95"), (2, "free median"), (3, "free p95")):
        axes.plot([row[0] for row in rows], [max(row[column], 0.1) for row in rows], marker="o", label=label)
    axes.set(yscale="log", xlabel="free load, share of all devices", ylabel="wait until the first step, s")
    axes.axhline(STEP_SECONDS, linestyle=":", color="grey")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
