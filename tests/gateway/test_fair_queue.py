"""The fair queue: shares, isolation, no starvation; token buckets; forecasts."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.fair_queue import (
    TIERS,
    Backlog,
    FairQueue,
    Tier,
    TokenBucket,
    Work,
    admissible,
    forecast,
    victim,
)

DRAFT, STANDARD, PRIORITY, BATCH = TIERS
TIER = st.sampled_from([DRAFT, STANDARD, PRIORITY, BATCH])
WORK = st.tuples(TIER, st.sampled_from("abc"), st.floats(0.1, 100.0), st.floats(0.0, 10.0))


def work(
    number: int, tier: Tier, tenant: str = "a", cost: float = 1.0, created: float = 0.0, *, weight: float = 1.0
) -> Work:
    return Work(key=str(number), tenant=tenant, tier=tier, cost=cost, created=created, weight=weight)


@given(st.lists(WORK, max_size=60))
def test_everything_that_is_queued_is_served_once(asked):
    queue = FairQueue()
    clock = 0.0
    for number, (tier, tenant, cost, wait) in enumerate(asked):
        clock += wait
        queue.push(work(number, tier, tenant, cost, clock))
    served = [queue.pop() for _ in asked]
    assert sorted(int(one.key) for one in served if one) == list(range(len(asked)))
    assert queue.pop() is None


@given(st.lists(WORK, min_size=1, max_size=60))
def test_the_work_of_one_tenant_in_one_tier_keeps_its_order(asked):
    queue, clock = FairQueue(), 0.0
    for number, (tier, tenant, cost, wait) in enumerate(asked):
        clock += wait
        queue.push(work(number, tier, tenant, cost, clock))
    served = [one for one in (queue.pop() for _ in asked) if one]
    for flow in {(one.tier.number, one.tenant) for one in served}:
        keys = [int(one.key) for one in served if (one.tier.number, one.tenant) == flow]
        assert keys == sorted(keys)


@given(st.integers(1, 5), st.integers(1, 5))
def test_tenants_with_work_share_their_tier_by_weight(heavy, light):
    queue = FairQueue(ageing=0.0)
    for number in range(200):
        queue.push(work(2 * number, STANDARD, "heavy", weight=float(heavy)))
        queue.push(work(2 * number + 1, STANDARD, "light", weight=float(light)))
    served = Counter(one.tenant for one in (queue.pop() for _ in range(120)) if one)
    assert served["heavy"] / 120 == pytest.approx(heavy / (heavy + light), abs=0.03)


def test_tiers_with_work_share_the_device_by_weight():
    queue = FairQueue()
    for number in range(1000):
        for tier in (DRAFT, STANDARD, PRIORITY):
            queue.push(work(number, tier))
    served = Counter(one.tier.name for one in (queue.pop() for _ in range(210)) if one)
    assert served == {"priority": 160, "standard": 40, "draft": 10}


@given(st.integers(0, 500))
def test_priority_that_comes_to_a_full_queue_is_next_whatever_waits(backlog):
    queue = FairQueue()
    for number in range(backlog):
        queue.push(work(number, DRAFT, f"t{number % 7}", cost=50.0))
    for _ in range(min(backlog, 3)):
        queue.pop()
    queue.push(work(9999, PRIORITY, created=1000.0))
    served = queue.pop()
    assert served is not None
    assert served.key == "9999"


def test_draft_is_served_however_much_priority_keeps_coming():
    queue = FairQueue()
    queue.push(work(0, DRAFT, cost=10.0))
    for number in range(1, 1000):
        queue.push(work(number, PRIORITY, created=float(number)))
        served = queue.pop()
        if served is not None and served.tier is DRAFT:
            assert number <= 200
            return
    pytest.fail("starved")


def test_ageing_serves_a_tenant_whose_tag_is_far_behind():
    queue = FairQueue(ageing=1.0)
    queue.push(work(0, STANDARD, "greedy", cost=50.0))
    queue.push(work(1, STANDARD, "greedy", cost=50.0, created=0.0))
    for number in range(2, 200):
        queue.push(work(number, STANDARD, f"new{number}", created=float(number)))
    order = [int(one.key) for one in (queue.pop() for _ in range(200)) if one]
    assert order.index(1) <= 60


def test_a_tier_at_its_cap_lets_the_others_go_first():
    capped = dataclasses.replace(PRIORITY, max_running=1)
    queue = FairQueue()
    for number in range(2):
        queue.push(work(number, capped))
    queue.push(work(2, DRAFT))
    first = queue.pop()
    assert first is not None
    second = queue.pop(running=[first])
    assert second is not None
    assert (first.key, second.key) == ("0", "2")


def test_a_tier_without_weight_is_refused():
    with pytest.raises(ValueError, match="starve"):
        Tier(number=9, name="none", weight=0.0, max_wait_seconds=1.0)


def test_the_lightest_and_youngest_work_yields_to_priority_and_only_to_it():
    running = [(STANDARD, 5.0, "s"), (DRAFT, 1.0, "old"), (DRAFT, 2.0, "young"), (PRIORITY, 9.0, "p")]
    assert victim(PRIORITY, running) == "young"
    assert victim(STANDARD, running) is None
    assert victim(PRIORITY, [(PRIORITY, 1.0, "p")]) is None


def test_a_batch_yields_to_every_other_tier():
    assert victim(DRAFT, [(STANDARD, 1.0, "s"), (BATCH, 9.0, "b")]) == "b"
    assert victim(BATCH, [(BATCH, 1.0, "b")]) is None


def test_work_begins_on_a_free_device_or_on_one_whose_work_yields():
    assert admissible(TIERS, [DRAFT], devices=2) == list(TIERS)
    assert admissible(TIERS, [DRAFT, STANDARD], devices=2) == [PRIORITY]
    assert admissible(TIERS, [DRAFT, BATCH], devices=2) == [DRAFT, STANDARD, PRIORITY]
    assert admissible(TIERS, [DRAFT, BATCH, STANDARD], devices=2) == [PRIORITY]
    assert admissible(TIERS, [DRAFT, PRIORITY, PRIORITY], devices=2) == []


@given(st.lists(st.floats(-5.0, 20.0), max_size=40))
def test_a_token_bucket_never_gives_more_than_its_rate(steps):
    bucket = TokenBucket(rate=2.0, capacity=5.0, level=5.0, updated=0.0)
    now, furthest, taken = 0.0, 0.0, 0
    forward = 0.0
    for step in steps:
        now += step
        forward += max(0.0, now - bucket.updated)
        bucket, wait = bucket.take(now)
        taken += wait == 0.0
        assert 0.0 <= bucket.level <= bucket.capacity
        furthest = max(furthest, now)
    assert taken <= 5.0 + 2.0 * forward + 1e-6


def test_a_token_bucket_says_when_to_come_back():
    bucket = TokenBucket(rate=0.5, capacity=1.0, level=1.0, updated=0.0)
    bucket, wait = bucket.take(0.0)
    assert wait == 0.0
    bucket, wait = bucket.take(1.0)
    assert wait == pytest.approx(1.0)
    _, wait = bucket.take(1.0 + wait)
    assert wait == 0.0


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 4))
def test_a_forecast_is_the_wait_of_the_queue_itself(own, other, devices):
    """The fluid forecast against the queue, served by one device: within the work of one round of the tiers."""
    queue = FairQueue(ageing=0.0)
    for number in range(own):
        queue.push(work(number, STANDARD))
    for number in range(other):
        queue.push(work(1000 + number, DRAFT))
    queue.push(work(5000, STANDARD))
    before = 0
    while (served := queue.pop()) is not None and served.key != "5000":
        before += 1
    found = forecast(
        tier=STANDARD,
        ahead=Backlog(count=own, cost=float(own)),
        cost=1.0,
        others={DRAFT: Backlog(count=other, cost=float(other))},
        running={},
        devices=devices,
    )
    assert found.wait_seconds * devices == pytest.approx(before, abs=2.0)
    assert found.position == pytest.approx(before + 1, abs=2.0)


@pytest.mark.parametrize(
    ("tier", "running", "seconds"),
    [
        (STANDARD, {}, 6.0),
        (STANDARD, {DRAFT: Backlog(count=1, cost=5.0)}, 6.0),
        (STANDARD, {DRAFT: Backlog(count=2, cost=8.0)}, 10.0),
        (STANDARD, {BATCH: Backlog(count=2, cost=1000.0)}, 6.0),
        (PRIORITY, {DRAFT: Backlog(count=2, cost=8.0)}, 6.0),
        (dataclasses.replace(STANDARD, max_running=1), {}, 12.0),
    ],
)
def test_a_forecast_counts_what_runs_only_where_it_is_in_the_way(tier, running, seconds):
    ahead = Backlog(count=3, cost=12.0)
    found = forecast(tier=tier, ahead=ahead, cost=1.0, others={}, running=running, devices=2)
    assert found.wait_seconds == seconds


def test_a_forecast_for_a_tier_at_its_cap_waits_for_its_own_work():
    capped = dataclasses.replace(STANDARD, max_running=1)
    running = {capped: Backlog(count=1, cost=7.0)}
    found = forecast(tier=capped, ahead=Backlog(), cost=1.0, others={}, running=running, devices=4)
    assert found.wait_seconds == 7.0
