"""Classes of service as an operator sets them, and batches, which make room for everything else."""

import asyncio

import grpc
import pytest

from rushes.v1 import catalog_pb2, catalog_pb2_grpc
from rushes.v1 import generation_pb2 as gp
from services.chassis.config import load
from services.gateway.config import GatewayConfig
from services.gateway.fair_queue import TIERS
from tests.gateway.processes import watch
from tests.gateway.stage_servers import Behaviour
from tests.gateway.suite import clip, eventually, kinds, suite
from tests.gateway.test_tenants import refused


def spec_of(prompt: str, tier: gp.Tier.ValueType) -> gp.GenerationSpec:
    return gp.GenerationSpec(prompt=prompt, tier=tier)


def test_what_is_not_told_is_as_ever():
    assert load(GatewayConfig, []).tiers.tiers == TIERS


def test_weights_and_caps_are_told_one_by_one(monkeypatch):
    monkeypatch.setenv("RUSHES_TIERS__DRAFT__WEIGHT", "2.5")
    monkeypatch.setenv("RUSHES_TIERS__STANDARD__MAX_RUNNING", "3")
    draft, standard, *others = load(GatewayConfig, ["--tiers.draft.max-wait-seconds", "60"]).tiers.tiers
    assert (draft.weight, draft.max_wait_seconds, draft.max_running) == (2.5, 60.0, None)
    assert (standard.weight, standard.max_wait_seconds, standard.max_running) == (4.0, 7200.0, 3)
    assert tuple(others) == TIERS[2:]


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("RUSHES_TIERS__DRAFT__WEIGHT", "0", "greater than 0"),
        ("RUSHES_TIERS__DRAFT__WEIGHT", "nan", "less than or equal"),
        ("RUSHES_TIERS__PRIORITY__MAX_RUNNING", "0", "greater than or equal to 1"),
        ("RUSHES_TIERS__BATCH__MAX_WAIT_SECONDS", "never", "valid number"),
        ("RUSHES_TIERS__GOLD__WEIGHT", "1", "not permitted"),
        ("RUSHES_TIERS__DRAFT__SIZE", "1", "not permitted"),
    ],
)
def test_a_wrong_value_stops_the_process_and_is_named(monkeypatch, capsys, variable, value, rule):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        load(GatewayConfig, [])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert variable.removesuffix("__WEIGHT") in said
    assert rule in said


async def test_the_limits_of_the_classes_are_published_and_kept(tmp_path):
    tiers = {"draft": {"weight": 2.0, "max_wait_seconds": 1e-9}, "standard": {"max_running": 1}}
    together: list[int] = []
    behaviour = Behaviour(slots=3, on_step=lambda _: together.append(behaviour.running.count(2)))
    behaviour.gate.clear()
    async with suite(tmp_path, behaviour, tiers=tiers) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            limits = await catalog_pb2_grpc.CatalogServiceStub(channel).GetLimits(catalog_pb2.GetLimitsRequest())
        told = {tier.name: tier for tier in limits.tiers}
        assert list(told) == ["draft", "standard", "priority", "batch"]
        assert (told["draft"].weight, told["draft"].max_wait_seconds) == (2.0, 1e-9)
        assert (told["standard"].max_running, told["standard"].max_wait_seconds) == (1, 7200.0)
        assert not told["batch"].HasField("max_wait_seconds")

        jobs = []
        for prompt, tier in (("a", gp.TIER_STANDARD), ("b", gp.TIER_DRAFT)):
            jobs.append(asyncio.create_task(running.generate(spec_of(prompt, tier))))
            await eventually(lambda: len(behaviour.running) == len(jobs))
        third = gp.CreateGenerationRequest(spec=spec_of("c", gp.TIER_STANDARD))
        waiting = (await running.stub.CreateGeneration(third)).generation
        refusal = running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=spec_of("d", gp.TIER_DRAFT)))
        assert await refused(refusal) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WAIT_TOO_LONG")
        behaviour.gate.set()
        for events in [await job for job in jobs] + [await watch(running.address, waiting.id, 0)]:
            assert kinds(events)[-1] == "succeeded"
        assert max(together) == 1


async def test_a_batch_on_every_device_makes_room_for_what_comes_alone_and_loses_no_step(tmp_path):
    spec = gp.GenerationSpec(prompt="one of many", seed=7)
    async with suite(tmp_path / "undisturbed") as running:
        undisturbed = clip(await running.generate(spec))
    behaviour = Behaviour(slots=1, step_seconds=0.3)
    async with suite(tmp_path / "batch", behaviour, checkpoint_seconds=30) as running:
        made = (await running.stub.CreateGenerations(gp.CreateGenerationsRequest(specs=[spec]))).generations
        await eventually(lambda: behaviour.steps)
        alone = await running.generate(gp.GenerationSpec(prompt="alone", seed=8, tier=gp.TIER_DRAFT))
        assert kinds(alone)[-1] == "succeeded"
        watched = running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made[0].id))
        events = [response.event async for response in watched]
        assert clip(events) == undisturbed
        assert [event.resumed.reason for event in events if event.HasField("resumed")] == ["STAGE_PREEMPTED"]
        assert len(behaviour.steps) == 12
        assert alone[-1].time.ToMicroseconds() < events[-1].time.ToMicroseconds()
