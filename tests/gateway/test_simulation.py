"""Tenants under overload: paid work is held up by at most a step, and free work is never starved."""

from tests.gateway.simulation import DEVICES, DRAFT, PRIORITY, STEP_SECONDS, STEPS, arrivals, simulate

SECONDS = 10 * 3600.0


def waits(free: float, paid: float = 0.3, *, preempts: bool = True):
    asked = arrivals(PRIORITY, load=paid, seconds=SECONDS, tenants=10, seed=1)
    asked += arrivals(DRAFT, load=free, seconds=SECONDS, tenants=50, seed=2)
    return simulate(asked, seconds=SECONDS, preempts=preempts)


def test_ten_times_the_free_load_moves_the_paid_p95_by_less_than_a_step():
    calm, crowd = waits(0.3), waits(3.0)
    assert crowd.quantile(PRIORITY, 0.95) - calm.quantile(PRIORITY, 0.95) < STEP_SECONDS


def test_without_preemption_paid_work_waits_for_whole_generations():
    assert waits(3.0, preempts=False).quantile(PRIORITY, 0.95) > 2 * STEP_SECONDS


def test_free_work_goes_on_while_paid_work_fills_every_device():
    crowd = waits(1.0, paid=2.0)
    served = len(crowd.seconds["draft"])
    capacity = SECONDS * DEVICES / (STEPS * STEP_SECONDS)
    assert served >= 0.03 * capacity
