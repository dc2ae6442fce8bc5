"""Start-time fair queueing over tiers and, inside a tier, over tenants, with ageing. Pure: time is an argument.

P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996: a unit of work of cost c in a flow of weight w
gets S = max(v, F_previous) (eq. 4) and F = S + c / w (eq. 5); the smallest start tag is served next, and the virtual
time v is the start tag in service. Costs are predicted device-seconds.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """A class of service. `weight` is its share of the device while every tier has work.

    `max_wait_seconds` is the predicted wait past which new work is refused, `max_running` how many of it may run at
    once (None: as many as there are devices). Work takes a device from running work of lower `precedence`, and does
    not count it as being in its way; on a device the higher `priority` has the next step.
    """

    number: int
    name: str
    weight: float
    max_wait_seconds: float
    max_running: int | None = None
    precedence: int = 1
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"tier {self.name}: weight must be greater than 0, or its work would starve")


TIERS: tuple[Tier, ...] = (
    Tier(number=1, name="draft", weight=1.0, max_wait_seconds=6 * 3600.0, priority=1),
    Tier(number=2, name="standard", weight=4.0, max_wait_seconds=2 * 3600.0, priority=2),
    Tier(number=3, name="priority", weight=16.0, max_wait_seconds=3600.0, precedence=2, priority=3),
    Tier(number=4, name="batch", weight=0.25, max_wait_seconds=float("inf"), precedence=0),
)
"""The classes of `rushes.v1.Tier`, and the one of what came as a batch."""

BATCH = 4
"""Number of the tier of batches."""

AGEING = 0.01
"""Device-seconds of head start that a second of waiting is worth inside a tier: no tenant waits for ever behind others
that keep arriving with small tags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """Start and finish tag of one unit of work."""

    start: float
    finish: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TierClock:
    """`start_tag`: earliest start tag of the tier's next work. `virtual_time`: that of its tenants."""

    start_tag: float = 0.0
    virtual_time: float = 0.0


def tags(*, virtual_time: float, finish_tag: float, cost: float, weight: float) -> Tags:
    """Tags of work of `cost` in a flow whose previous work finishes at `finish_tag` (eqs. 4 and 5)."""
    start = max(virtual_time, finish_tag)
    return Tags(start=start, finish=start + cost / weight)


def rank(*, start_tag: float, created: float, ageing: float = AGEING) -> float:
    """The order inside a tier, smallest first: start_tag - ageing * (now - created), of which `now` is common to all.

    Being independent of `now`, it is computed once and indexed.
    """
    return start_tag + ageing * created


def choose_tier(*, virtual_time: float, clocks: Mapping[int, TierClock], backlogged: Iterable[Tier]) -> Tier | None:
    """The backlogged tier whose next start tag is smallest; the heavier one where they are equal."""
    return min(
        backlogged,
        key=lambda tier: (max(virtual_time, clocks.get(tier.number, TierClock()).start_tag), -tier.weight, tier.number),
        default=None,
    )


def advance(
    *, virtual_time: float, clock: TierClock, tier: Tier, cost: float, start_tag: float
) -> tuple[float, TierClock]:
    """The queue's virtual time and the tier's clock after work of `cost`, tagged `start_tag` in its tier, is taken."""
    tier_tags = tags(virtual_time=virtual_time, finish_tag=clock.start_tag, cost=cost, weight=tier.weight)
    return tier_tags.start, TierClock(start_tag=tier_tags.finish, virtual_time=max(clock.virtual_time, start_tag))


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Queued work: who asked, in which tier, its predicted cost in device-seconds, and when it came."""

    key: str
    tenant: str
    tier: Tier
    cost: float
    created: float
    weight: float = 1.0


@dataclass(order=True, slots=True)
class _Entry:
    rank: float
    order: int
    start_tag: float = field(compare=False)
    work: Work = field(compare=False)


class FairQueue:
    """The whole queue in memory, on the functions above; the job store keeps the same state in tables."""

    def __init__(self, *, ageing: float = AGEING) -> None:
        self._ageing = ageing
        self._virtual_time = 0.0
        self._clocks: dict[int, TierClock] = {}
        self._finish_tags: dict[tuple[int, str], float] = {}
        self._heaps: dict[Tier, list[_Entry]] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def waiting(self, tier: Tier) -> int:
        """How much work of a tier waits."""
        return len(self._heaps.get(tier, ()))

    def push(self, work: Work) -> None:
        """Queue `work`."""
        flow = (work.tier.number, work.tenant)
        clock = self._clocks.get(work.tier.number, TierClock())
        work_tags = tags(
            virtual_time=clock.virtual_time,
            finish_tag=self._finish_tags.get(flow, 0.0),
            cost=work.cost,
            weight=work.weight,
        )
        self._finish_tags[flow] = work_tags.finish
        entry = _Entry(
            rank=rank(start_tag=work_tags.start, created=work.created, ageing=self._ageing),
            order=self._pushed,
            start_tag=work_tags.start,
            work=work,
        )
        self._pushed += 1
        heapq.heappush(self._heaps.setdefault(work.tier, []), entry)

    def pop(self, *, running: Collection[Work] = ()) -> Work | None:
        """Take the next work, or None if there is none or every tier with work is at its cap of `running`."""
        open_tiers = [
            tier
            for tier, heap in self._heaps.items()
            if heap and (tier.max_running is None or sum(work.tier == tier for work in running) < tier.max_running)
        ]
        tier = choose_tier(virtual_time=self._virtual_time, clocks=self._clocks, backlogged=open_tiers)
        if tier is None:
            return None
        entry = heapq.heappop(self._heaps[tier])
        self._virtual_time, self._clocks[tier.number] = advance(
            virtual_time=self._virtual_time,
            clock=self._clocks.get(tier.number, TierClock()),
            tier=tier,
            cost=entry.work.cost,
            start_tag=entry.start_tag,
        )
        return entry.work


def victim(waiting: Tier, running: Iterable[tuple[Tier, float, str]]) -> str | None:
    """The running work, as (tier, begun, key), that yields its device to `waiting`; None if none has to.

    The lightest tier yields first, and in it the work that began last: it has the least to lose.
    """
    lower = [(tier.weight, -begun, key) for tier, begun, key in running if tier.precedence < waiting.precedence]
    return min(lower)[2] if lower else None


def admissible(tiers: Iterable[Tier], running: Iterable[Tier], devices: int) -> list[Tier]:
    """The tiers whose work may begin beside the `running`: those that find a device free or held by work that yields.

    What yielded its device still counts as running: it goes on as soon as there is one again.
    """
    held = list(running)
    return [tier for tier in tiers if sum(other.precedence >= tier.precedence for other in held) < devices]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """A rate limit: `capacity` at once, `rate` a second on average. `level` tokens were in it at `updated`."""

    rate: float
    capacity: float
    level: float
    updated: float

    def take(self, now: float, tokens: float = 1.0) -> tuple["TokenBucket", float]:
        """The bucket after taking `tokens`, and 0; or, if it holds too few, the bucket and the seconds to wait.

        A clock that steps back neither fills nor empties it.
        """
        level = min(self.capacity, self.level + max(0.0, now - self.updated) * self.rate)
        bucket = replace(self, level=level, updated=now)
        if level >= tokens:
            return replace(bucket, level=level - tokens), 0.0
        return bucket, (tokens - level) / self.rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Work of one tier: how much, and the predicted device-seconds that are left of it."""

    count: int = 0
    cost: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Place in the queue from 1, and predicted seconds until a device is free for it."""

    position: int
    wait_seconds: float


def forecast(
    *,
    tier: Tier,
    ahead: Backlog,
    cost: float,
    others: Mapping[Tier, Backlog],
    running: Mapping[Tier, Backlog],
    devices: int,
) -> Forecast:
    """Predict when work of `cost` is taken: after `ahead` in its own tier, while the `others` get their shares.

    While own work of c device-seconds is served, a tier of weight ratio r gets at most r * c of service, and at most
    what it has: the fluid limit of the queue above. A device that is free, or whose work yields, waits for nobody; a
    tier with a cap never has more devices than that.
    """
    devices = max(1, devices)
    staying = [backlog for other, backlog in running.items() if other.precedence >= tier.precedence]
    held = sum(backlog.cost for backlog in staying) if sum(one.count for one in staying) >= devices else 0.0
    own = ahead.cost + cost
    count, interleaved = float(ahead.count), 0.0
    for other, backlog in others.items():
        served = min(backlog.cost, own * other.weight / tier.weight)
        interleaved += served
        count += backlog.count * (served / backlog.cost) if backlog.cost else 0.0
    wait = (held + ahead.cost + interleaved) / devices
    if tier.max_running is not None:
        mine = running.get(tier, Backlog())
        before = ahead.cost + (mine.cost if mine.count >= tier.max_running else 0.0)
        wait = max(wait, before / min(devices, tier.max_running))
    return Forecast(position=int(count) + 1, wait_seconds=wait)
