"""Any order of operations on the job store agrees with a model of it, on SQLite and PostgreSQL."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import delete, select

from services.gateway.store.database import open_database
from services.gateway.store.job import Lease, LeaseLost, Outcome, UnknownGeneration
from services.gateway.store.tables import generations, metadata
from services.gateway.store.transitions import TERMINAL, TRANSITIONS, State
from tests.gateway.conftest import empty_database
from tests.gateway.history_checker import check_histories
from tests.gateway.store_on_a_clock import Store


class Machine(RuleBasedStateMachine):
    """Any order of everything that callers, workers, clocks and reapers do, held against a model of it."""

    url: str
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.context = open_database(self.url)
        self.database = self.run(self.context.__aenter__())
        self.run(self._empty())
        self.store = Store(self.database)
        self.states: dict[str, State] = {}
        self.epochs: dict[str, int] = {}
        self.until: dict[str, float] = {}
        self.asked: set[str] = set()
        self.last: dict[str, int] = {}

    async def _empty(self) -> None:
        async with self.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                if table.name != "secrets":
                    await connection.execute(delete(table))

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def holds(self, lease: Lease) -> bool:
        return self.states[lease.id] is State.RUNNING and self.epochs[lease.id] == lease.epoch

    @rule(tenant=st.sampled_from("ab"), tier=st.sampled_from([1, 2, 3]))
    def create(self, tenant: str, tier: int) -> None:
        job = self.run(self.store.create(tenant=tenant, tier=tier))
        self.states[job.id], self.last[job.id] = State.QUEUED, 1

    @rule(target=leases, owner=st.sampled_from(["w1", "w2"]))
    def claim(self, owner: str) -> Lease | None:
        claimed = self.run(self.store.claim(owner))
        waiting = {key for key, state in self.states.items() if state is State.QUEUED}
        if claimed is None:
            assert not waiting
            return None
        lease, job = claimed
        assert lease.id in waiting
        assert lease.epoch > self.epochs.get(lease.id, 0)
        self.states[lease.id], self.epochs[lease.id] = State.RUNNING, lease.epoch
        self.until[lease.id] = self.store.clock.now + 10
        self.last[lease.id] += 1
        assert job.last_sequence == self.last[lease.id]
        return lease

    def attempt(self, lease: Lease | None, coroutine) -> bool:
        if lease is None:
            coroutine.close()
            return False
        allowed = self.holds(lease)
        try:
            self.run(coroutine)
        except LeaseLost:
            assert not allowed
            return False
        assert allowed
        return True

    @rule(lease=leases, count=st.integers(1, 3), again=st.booleans())
    def append(self, lease: Lease | None, count: int, again: bool) -> None:
        for _ in range(2 if again else 1):
            after = self.last[lease.id] if lease else 0
            call = self.store.leases.append(lease or Lease(id="", owner="", epoch=0), [b"step"] * count, after=after)
            if self.attempt(lease, call) and not again:
                self.last[lease.id] += count
            again_allowed = lease is not None and self.holds(lease)
            if again and again_allowed:
                repeated = self.run(self.store.leases.append(lease, [b"step"] * count, after=after))
                assert repeated == after + count
                self.last[lease.id] += count
            return

    @rule(lease=leases)
    def heartbeat(self, lease: Lease | None) -> None:
        call = self.store.leases.heartbeat(lease or Lease(id="", owner="", epoch=0))
        if self.attempt(lease, call):
            self.until[lease.id] = self.store.clock.now + 10

    @rule(lease=consumes(leases), state=st.sampled_from(sorted(TERMINAL)))
    def finish(self, lease: Lease | None, state: State) -> None:
        call = self.store.leases.finish(lease or Lease(id="", owner="", epoch=0), Outcome(state=state))
        if self.attempt(lease, call):
            self.states[lease.id] = state
            self.last[lease.id] += 1

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if self.attempt(lease, self.store.leases.release(lease or Lease(id="", owner="", epoch=0), "DRAINED")):
            self.states[lease.id] = State.QUEUED

    @rule(data=st.data())
    def cancel(self, data) -> None:
        if not self.states:
            return
        key = data.draw(st.sampled_from(sorted(self.states)))
        for tenant in "ab":
            try:
                self.run(self.store.jobs.cancel(key, tenant))
            except UnknownGeneration:
                continue
        if self.states[key] is State.QUEUED:
            self.states[key] = State.CANCELLED
            self.last[key] += 1
        elif self.states[key] is State.RUNNING:
            self.asked.add(key)

    @rule(seconds=st.sampled_from([-5.0, 1.0, 6.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.store.clock.now += seconds

    @rule()
    def reap(self) -> None:
        expired = {
            key
            for key, state in self.states.items()
            if state is State.RUNNING and self.until[key] < self.store.clock.now
        }
        reaped = self.run(self.store.reap())
        assert {job.id for job in reaped} == expired
        for job in reaped:
            assert job.state in TRANSITIONS[State.RUNNING]
            assert job.state is State.CANCELLED or job.id not in self.asked
            self.states[job.id], self.epochs[job.id] = job.state, job.lease_epoch
            self.last[job.id] += job.state in TERMINAL

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "store"):
            return

        async def rows():
            async with self.database.read() as connection:
                columns = generations.c.id, generations.c.state, generations.c.last_sequence
                return (await connection.execute(select(*columns))).all()

        stored = self.run(rows())
        assert {row.id: State(row.state) for row in stored} == self.states
        assert {row.id: row.last_sequence for row in stored} == self.last

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.run(check_histories(self.database, bytes.decode))
        finally:
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()


QUICK = settings(max_examples=6, stateful_step_count=20, suppress_health_check=list(HealthCheck), database=None)


def run_machine(url: str, examples: settings) -> None:
    machine = type("Machine", (Machine,), {"url": url})
    machine.TestCase.settings = examples
    case = machine.TestCase("runTest")
    case.runTest()


def test_any_order_of_operations_agrees_with_the_model_on_sqlite():
    with tempfile.TemporaryDirectory() as folder:
        run_machine(f"sqlite:///{Path(folder) / 'machine.db'}", QUICK)


def test_any_order_of_operations_agrees_with_the_model_on_postgres(postgres: str):
    with empty_database(postgres) as url:
        run_machine(url, QUICK)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_very_many_orders_of_operations_agree_with_the_model(database_url: str):
    run_machine(database_url, settings(QUICK, max_examples=300, stateful_step_count=60))
