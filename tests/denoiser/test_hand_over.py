"""State out of one call and into another: checkpoints, ranges, the boundary, drain."""

import asyncio
from pathlib import Path

import grpc
import pytest

from models.untrained import write_untrained
from rushes.v1 import denoiser_pb2, sampling_pb2, tensors_pb2
from services.chassis.errors import FailedPrecondition, InvalidRequest, RushesError, Unavailable, from_rpc_error
from tests.denoiser.caller import STEPS, Caller, Outcome, collect, conditioning, requests, start
from tests.denoiser.conftest import Serve
from tests.denoiser.test_service import SLOW

SOLVERS = ["SOLVER_UNIPC", "SOLVER_EULER", "SOLVER_DPMPP_2M"]


async def refusal(caller: Caller, **fields: object) -> RushesError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.denoise(**fields)  # type: ignore[arg-type]  # passed through
    return from_rpc_error(refused.value)


def reason(outcome: Outcome) -> str:
    assert outcome.result is not None
    assert outcome.bundles[-1].announced.reason == outcome.result.reason
    assert outcome.bundles[-1].announced.next_step == outcome.result.next_step
    return denoiser_pb2.BundleReason.Name(outcome.result.reason)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guided", [True, False])
async def test_a_run_cut_at_any_step_and_continued_equals_the_straight_run(
    caller: Caller, solver: str, guided: bool
) -> None:
    sampling = {"solver": solver} | ({} if guided else {"guidance_scale_high": 1.0, "guidance_scale_low": 1.0})
    whole = await caller.denoise(sampling=sampling)
    for cut in range(1, STEPS):
        first = await caller.denoise(sampling=sampling, end_step=cut)
        assert reason(first) == "BUNDLE_REASON_RANGE_END"
        assert [step.index for step in first.steps] == list(range(cut))
        rest = await caller.denoise(sampling=sampling, state=first.state, first_step=cut)
        assert [step.index for step in rest.steps] == list(range(cut, STEPS))
        assert rest.bundles[-1].payload == whole.bundles[-1].payload


async def test_a_run_in_single_steps_equals_the_straight_run(caller: Caller) -> None:
    state = b""
    for step in range(STEPS):
        outcome = await caller.denoise(state=state, first_step=step, end_step=step + 1)
        state = outcome.state
    assert state == (await caller.denoise()).bundles[-1].payload


async def test_one_expert_each_equals_both_in_one_process(serve: Serve) -> None:
    async with serve() as both, serve(experts="high") as high, serve(experts="low") as low:
        whole = await both.denoise()
        assert list((await high.describe()).experts) == [sampling_pb2.EXPERT_HIGH_NOISE]
        first = await high.denoise()
        assert reason(first) == "BUNDLE_REASON_BOUNDARY"
        assert first.accepted is not None
        assert first.accepted.end_step == first.accepted.boundary_step == 3
        rest = await low.denoise(state=first.state, first_step=3)
    assert {step.expert for step in rest.steps} == {sampling_pb2.EXPERT_LOW_NOISE}
    assert rest.bundles[-1].payload == whole.bundles[-1].payload


async def test_steps_of_an_expert_that_is_not_here_are_refused(serve: Serve) -> None:
    async with serve(experts="low") as low, serve(experts="high") as high:
        for error in (await refusal(low), await refusal(high, end_step=5)):
            assert isinstance(error, FailedPrecondition)
            assert error.reason == "EXPERT_NOT_HELD"


async def test_checkpoints_come_by_count_and_each_continues_the_run(caller: Caller) -> None:
    whole = await caller.denoise(checkpoints=denoiser_pb2.CheckpointPolicy(every_steps=2))
    checkpoints = [each for each in whole.bundles if each.announced.reason == denoiser_pb2.BUNDLE_REASON_CHECKPOINT]
    assert checkpoints
    assert all(each.announced.header.kind == tensors_pb2.BUNDLE_KIND_SOLVER_STATE for each in checkpoints)
    for checkpoint in checkpoints:
        step = checkpoint.announced.next_step
        assert step in (2, 4, 6)
        assert checkpoint.bundle.metadata["next_step"] == str(step)
        rest = await caller.denoise(state=checkpoint.payload, first_step=step)
        assert rest.bundles[-1].payload == whole.bundles[-1].payload


async def test_checkpoints_by_time_with_zero_seconds_come_at_every_step(caller: Caller) -> None:
    policy = denoiser_pb2.CheckpointPolicy(every_seconds=0)
    shape = {"width": 256, "height": 256, "num_frames": 9}
    outcome = await caller.denoise(checkpoints=policy, shape=shape, sampling={"steps": 3})
    steps = [each.announced.next_step for each in outcome.bundles]
    assert steps[-1] == 3
    assert set(steps[:-1]) <= {1, 2}
    assert steps[:-1]


async def test_no_checkpoint_comes_unasked_or_before_its_time(caller: Caller) -> None:
    assert len((await caller.denoise()).bundles) == 1
    policy = denoiser_pb2.CheckpointPolicy(every_seconds=3600)
    assert len((await caller.denoise(checkpoints=policy)).bundles) == 1


async def test_a_drain_hands_the_work_back_at_the_next_step(serve: Serve) -> None:
    async with serve() as leaving, serve() as staying:
        text = conditioning()
        call = leaving.stub.Denoise(requests(start(text, **SLOW), text))
        first = Outcome()
        async for response in call:
            if response.WhichOneof("message") == "step":
                first.steps.append(response.step)
                break
        assert leaving.draining is not None
        leaving.draining.set()
        handed = await collect(call)
        assert reason(handed) == "BUNDLE_REASON_DRAINED"
        assert handed.result is not None
        step = handed.result.next_step
        assert len(first.steps) + len(handed.steps) == step <= 4
        error = await refusal(leaving)
        assert isinstance(error, Unavailable)
        short = {**SLOW, "end_step": step + 2}
        rest = await staying.denoise(state=handed.state, first_step=step, **short)
        whole = await staying.denoise(**short)
    assert rest.state == whole.state


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"solver": "SOLVER_DPMPP_2M"}},
        {"sampling": {"flow_shift": 5.0}},
        {"sampling": {"guidance_scale_low": 2.0}},
        {"sampling": {"boundary_ratio": 0.5}},
        {"sampling": {"steps": STEPS + 1}},
        {"shape": {"num_frames": 13}},
        {"shape": {"width": 80}},
        {"first_step": 5},
    ],
)
async def test_a_state_of_another_run_is_refused(caller: Caller, change: dict[str, object]) -> None:
    first = await caller.denoise(end_step=4)
    error = await refusal(caller, **{"state": first.state, "first_step": 4, **change})
    # A smaller or larger clip may already fail by the announced size.
    assert isinstance(error, FailedPrecondition | InvalidRequest)
    if isinstance(error, FailedPrecondition):
        assert error.reason == "STATE_MISMATCH"
    assert len((await caller.denoise()).steps) == STEPS


async def test_a_state_of_another_model_is_refused(serve: Serve, tmp_path: Path) -> None:
    other = write_untrained(tmp_path / "other", seed=1)
    async with serve() as ours, serve(model=other) as theirs:
        first = await ours.denoise(end_step=4)
        error = await refusal(theirs, state=first.state, first_step=4)
    assert isinstance(error, FailedPrecondition)
    assert "another model" in error.message


async def test_a_finished_call_leaves_no_task_behind(caller: Caller) -> None:
    before = len(asyncio.all_tasks())
    await caller.denoise(previews=sampling_pb2.PreviewSettings(every_steps=1))
    await asyncio.sleep(0.1)
    assert len(asyncio.all_tasks()) <= before + 1
