"""What the quality gate refuses is made again: with which seed, how often, and what a viewer and a bill see of it."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from rushes.v1 import finishing_pb2 as fp
from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from rushes.v1.usage_pb2 import GetUsageRequest
from rushes.v1.usage_pb2_grpc import UsageServiceStub
from services.chassis.errors import FailedPrecondition
from services.gateway.spec import fingerprint
from services.gateway.store.database import open_database
from services.gateway.takes import Takes, black_share, seed_of
from tests.gateway.history_checker import check_histories
from tests.gateway.processes import process, watch
from tests.gateway.stage_servers import Behaviour, stages
from tests.gateway.suite import clip, eventually, kind, kinds, suite

SEED = 7
BLACK = {"check": "black", "start": "0.25", "end": "0.5", "score": "0.99", "threshold": "0.98"}


def spec(action: int = fp.FINDING_ACTION_RETRY, *, seed: int = SEED, **policy: object) -> gp.GenerationSpec:
    """A clip whose black frames do what `action` says."""
    retakes = policy.pop("retakes", None)
    rule = fp.InspectionRule(check=fp.INSPECTION_CHECK_BLACK, action=action, retakes=retakes)
    return gp.GenerationSpec(prompt="a red circle", seed=seed, inspection=fp.InspectionPolicy(rules=[rule], **policy))


def refusing(at: int, times: int, reason: str = "QUALITY_GATE") -> Callable[[int], None]:
    """A hook that refuses the work at `at`, so many times."""
    left = [times]

    def hook(index: int) -> None:
        if index == at and left[0]:
            left[0] -= 1
            raise FailedPrecondition("The gate refused the clip: black.", reason=reason, metadata=BLACK)

    return hook


async def undisturbed(folder: Path, seed: int) -> bytes:
    """The clip of a seed that nothing refuses."""
    await asyncio.to_thread(folder.mkdir)
    async with suite(folder) as running:
        return clip(await running.generate(gp.GenerationSpec(prompt="a red circle", seed=seed)))


async def test_a_refused_take_is_followed_by_one_with_another_seed(tmp_path: Path) -> None:
    behaviour = Behaviour(on_fragment=refusing(2, 1))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(spec())
        made = events[-1].succeeded.generation
        async with grpc.aio.insecure_channel(running.address) as channel:
            usage = await UsageServiceStub(channel).GetUsage(GetUsageRequest())

    (retaken,) = [event.retaken for event in events if event.HasField("retaken")]
    assert (retaken.take, retaken.refused_seed, retaken.seed, retaken.reason) == (2, 7, seed_of(7, 2), "QUALITY_GATE")
    assert retaken.finding == fp.Finding(
        check=fp.INSPECTION_CHECK_BLACK,
        action=fp.FINDING_ACTION_RETRY,
        start_seconds=0.25,
        end_seconds=0.5,
        score=0.99,
        threshold=0.98,
    )
    assert (made.spec.seed, made.video.seed, made.video.takes) == (7, seed_of(7, 2), 2)
    assert clip(events) == await undisturbed(tmp_path / "other", seed_of(7, 2))
    assert behaviour.calls == ["encode", "denoise", "render", "denoise", "render"]
    assert kinds(events).count("rendering") == 2
    assert kinds(events).count("encoded") == 1
    heard = sum(event.step.seconds for event in events if event.HasField("step"))
    assert len(behaviour.steps) == 12
    assert sum(bucket.denoise_seconds for bucket in usage.buckets) == pytest.approx(heard)


async def test_when_the_takes_are_used_up_the_generation_fails_and_says_of_what(tmp_path: Path) -> None:
    behaviour = Behaviour(on_fragment=refusing(1, 9))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(spec(retakes=1))
        failed = events[-1].failed.generation
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in running.stub.DownloadVideo(gp.DownloadVideoRequest(id=failed.id)):
                pass

    assert kinds(events).count("retaken") == 1
    assert (failed.failure.reason, failed.failure.stage, failed.failure.takes) == ("QUALITY_GATE", "postprocess", 2)
    assert not failed.failure.retryable
    assert failed.failure.finding.check == fp.INSPECTION_CHECK_BLACK
    assert (failed.failure.finding.start_seconds, failed.failure.finding.end_seconds) == (0.25, 0.5)
    assert (failed.failure.finding.score, failed.failure.finding.threshold) == (0.99, 0.98)
    assert not failed.HasField("video")
    assert not [path for path in (tmp_path / "artifacts").rglob("clips/*") if path.is_file()]
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_rule_that_fails_asks_for_no_other_take(tmp_path: Path) -> None:
    behaviour = Behaviour(on_fragment=refusing(1, 9))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(spec(fp.FINDING_ACTION_FAIL))

    assert kinds(events)[-1] == "failed"
    assert "retaken" not in kinds(events)
    assert events[-1].failed.generation.failure.takes == 1


async def test_a_black_prediction_is_retaken_before_anything_is_rendered(tmp_path: Path) -> None:
    behaviour = Behaviour(on_step=refusing(3, 1, "PREDICTION_BLACK"))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(spec())

    (retaken,) = [event.retaken for event in events if event.HasField("retaken")]
    assert retaken.reason == "PREDICTION_BLACK"
    assert behaviour.calls == ["encode", "denoise", "denoise", "render"]
    assert behaviour.steps == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert clip(events) == await undisturbed(tmp_path / "other", seed_of(7, 2))


async def test_no_take_begins_that_could_not_end_in_time(tmp_path: Path) -> None:
    behaviour = Behaviour(on_fragment=refusing(1, 9))
    async with suite(tmp_path, behaviour) as running:
        events = await running.generate(spec(retake_within_seconds=0.000001))

    assert "retaken" not in kinds(events)
    assert events[-1].failed.generation.failure.reason == "QUALITY_GATE"


async def test_an_answer_from_the_cache_repeats_only_the_take_that_passed(tmp_path: Path) -> None:
    behaviour = Behaviour(on_fragment=refusing(2, 1))
    async with suite(tmp_path, behaviour) as running:
        first = await running.generate(spec())
        second = await running.generate(spec(), cache=gp.CACHE_MODE_PREFER)

    ended = second[-1].succeeded.generation
    assert ended.cached_from == first[-1].succeeded.generation.id
    assert (ended.video.seed, ended.video.takes) == (seed_of(7, 2), 2)
    assert kinds(second).count("rendering") == 1
    assert "retaken" not in kinds(second)
    assert clip(second) == clip(first)
    assert len(behaviour.steps) == 12


@pytest.mark.parametrize("where", ["step", "fragment"])
async def test_a_gateway_killed_in_the_second_take_goes_on_with_that_take(tmp_path: Path, where: str) -> None:
    reached = asyncio.Event()
    refuse = refusing(2, 1)

    def on_fragment(index: int) -> None:
        refuse(index)
        if where == "fragment" and behaviour.calls.count("render") == 2 and index == 2:
            reached.set()

    def on_step(_index: int) -> None:
        if where == "step" and len(behaviour.steps) == 9:
            reached.set()

    behaviour = Behaviour(on_fragment=on_fragment, on_step=on_step, step_seconds=0.02)
    url = f"sqlite:///{tmp_path}/rushes.db"
    async with stages(behaviour) as at:
        async with process(at, url, tmp_path) as (victim, address), grpc.aio.insecure_channel(address) as channel:
            asked = gp.CreateGenerationRequest(spec=spec())
            made = (await GenerationServiceStub(channel).CreateGeneration(asked)).generation
            await eventually(reached.is_set)
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
        async with process(at, url, tmp_path) as (_, address):
            events = await watch(address, made.id, 0)
    async with open_database(url) as database:
        assert await check_histories(database, kind, all_ended=True) == 1

    ended = events[-1].succeeded.generation
    assert (ended.video.seed, ended.video.takes, ended.attempt) == (seed_of(7, 2), 2, 2)
    assert kinds(events).count("retaken") == 1
    assert kinds(events).count("encoded") == 1
    assert clip(events) == await undisturbed(tmp_path / "other", seed_of(7, 2))


def test_a_policy_belongs_to_what_a_cached_clip_is_known_by() -> None:
    assert fingerprint(spec(), "model") == fingerprint(spec(), "model")
    assert fingerprint(spec(), "model") != fingerprint(spec(retakes=3), "model")


def test_every_take_has_a_seed_of_its_own_that_follows_from_the_first() -> None:
    seeds = [seed_of(7, take) for take in range(1, 10)]

    assert seeds[0] == 7
    assert len(set(seeds)) == 9
    assert seeds == [seed_of(7, take) for take in range(1, 10)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of(8, 2) != seed_of(7, 2)


def test_takes_go_on_from_the_last_one_of_the_history() -> None:
    past = [gp.GenerationEvent(retaken=gp.RetakenEvent(take=take, seed=seed_of(7, take))) for take in (2, 3)]

    assert (Takes(spec(), past).number, Takes(spec(), past).seed) == (3, seed_of(7, 3))


def test_black_predictions_end_the_work_unless_black_is_only_to_be_noted() -> None:
    assert black_share(fp.InspectionPolicy()) == 0.98
    assert black_share(spec(fp.FINDING_ACTION_RETRY).inspection) == 0.98
    assert black_share(spec(fp.FINDING_ACTION_WARN).inspection) == 0
    stated = fp.InspectionRule(check=fp.INSPECTION_CHECK_BLACK, action=fp.FINDING_ACTION_FAIL, threshold=0.5)
    assert black_share(fp.InspectionPolicy(rules=[stated])) == 0.5


async def test_a_stage_that_breaks_in_the_middle_ends_the_generation_once_and_leaves_no_half_of_a_clip(
    tmp_path: Path,
) -> None:
    def broken(index: int) -> None:
        if index == 2:
            raise FailedPrecondition("The stage encode failed.", reason="STAGE_FAILED", metadata={"stage": "encode"})

    async with suite(tmp_path, Behaviour(on_fragment=broken)) as running:
        events = await running.generate(spec())

    failure = events[-1].failed.generation.failure
    assert [one for one in kinds(events) if one in ("succeeded", "failed", "cancelled")] == ["failed"]
    assert (failure.stage, failure.reason, failure.takes) == ("postprocess", "STAGE_FAILED", 1)
    assert not failure.HasField("finding")
    assert not [path for path in (tmp_path / "artifacts").rglob("clips/*") if path.is_file()]
