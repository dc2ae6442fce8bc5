"""Separate processes: work that survives `kill -9`, SIGTERM that hands work back, one expert a process."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from rushes.v1 import denoiser_pb2
from services.chassis.channels import open_channel
from services.model.errors import ModelRefused
from tests.denoiser.caller import STEPS, Caller, Outcome, Received, collect, conditioning, requests, start
from tests.denoiser.conftest import Serve

SOLVERS = ("SOLVER_EULER", "SOLVER_UNIPC", "SOLVER_DPMPP_2M")
LONG: dict[str, Any] = {"shape": {"width": 128, "height": 128, "num_frames": 17}, "sampling": {"steps": 30}}


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    process: Process
    caller: Caller


@asynccontextmanager
async def denoiser(model: Path, socket: Path, *flags: str) -> AsyncIterator[Denoiser]:
    """A denoiser process that says it is ready; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.denoiser", "--model", str(model), "--listen", f"unix:{socket}", *flags),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = (await process.stdout.readline()).decode().split()
        if line[:2] != ["ready", "denoiser"]:
            pytest.fail((await process.stderr.read()).decode())
        async with open_channel(line[2]) as channel:
            yield Denoiser(process=process, caller=Caller(channel))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.timeout(900)
async def test_work_survives_its_process(untrained: Path, tmp_path: Path) -> None:
    text = conditioning()
    async with AsyncExitStack() as stack:
        flags = {"both": ("--slots", "3"), "high": ("--experts", "high"), "low": ("--experts", "low")}
        async with asyncio.TaskGroup() as group:
            starting = {
                name: group.create_task(stack.enter_async_context(denoiser(untrained, tmp_path / name, *each)))
                for name, each in flags.items()
            }
        both, high, low = (starting[name].result() for name in flags)
        whole = await both.caller.denoise(text=text, **LONG)
        latents = whole.bundles[-1].payload
        assert whole.accepted is not None
        boundary = whole.accepted.boundary_step

        # One expert a process.
        first = await high.caller.denoise(text=text, **LONG)
        assert first.result is not None
        assert first.result.reason == denoiser_pb2.BUNDLE_REASON_BOUNDARY
        assert first.result.next_step == boundary
        rest = await low.caller.denoise(text=text, state=first.state, first_step=boundary, **LONG)
        assert rest.bundles[-1].payload == latents

        # Every solver, cut at every step, each step in another process than the one before.
        for solver in SOLVERS:
            await cut_at_every_step_over_processes(solver, both.caller, high.caller, low.caller, text)

        # SIGTERM in the middle of a run.
        handed = await drained_by_sigterm(high, text)
        assert handed.result is not None
        assert handed.result.next_step < boundary
        rest = await both.caller.denoise(text=text, state=handed.state, first_step=handed.result.next_step, **LONG)
        assert rest.bundles[-1].payload == latents

        # kill -9 between two checkpoints of each solver; continued from the last one.
        lengthy = {solver: {**LONG, "sampling": {**LONG["sampling"], "solver": solver}} for solver in SOLVERS}
        expected = {
            solver: (await both.caller.denoise(text=text, **fields)).bundles[-1].payload
            for solver, fields in lengthy.items()
        }
        assert len(set(expected.values())) == len(SOLVERS)
        checkpoints = await last_checkpoints_before_the_kill(both, text, boundary, lengthy)
        for solver, checkpoint in checkpoints.items():
            step = checkpoint.announced.next_step
            resumed = await low.caller.denoise(text=text, state=checkpoint.payload, first_step=step, **lengthy[solver])
            assert [each.index for each in resumed.steps] == list(range(step, LONG["sampling"]["steps"]))
            assert resumed.bundles[-1].payload == expected[solver]


async def cut_at_every_step_over_processes(solver: str, both: Caller, high: Caller, low: Caller, text: bytes) -> None:
    """A run of which every other step is made by the process with both experts, the rest by those with one each."""
    sampling = {"solver": solver}
    whole = await both.denoise(text=text, sampling=sampling)
    assert whole.accepted is not None
    boundary, state = whole.accepted.boundary_step, b""
    assert 0 < boundary < STEPS
    for step in range(STEPS):
        single = high if step < boundary else low
        outcome = await (both if step % 2 else single).denoise(
            text=text, state=state, first_step=step, end_step=step + 1, sampling=sampling
        )
        state = outcome.state
    assert state == whole.bundles[-1].payload


async def drained_by_sigterm(leaving: Denoiser, text: bytes) -> Outcome:
    """What a process hands back that is told to stop after its first step, and then stops."""
    call = leaving.caller.stub.Denoise(requests(start(text, **LONG), text))
    async for response in call:
        if response.WhichOneof("message") == "step":
            leaving.process.send_signal(signal.SIGTERM)
            break
    handed = await collect(call)
    assert handed.result is not None
    assert handed.result.reason == denoiser_pb2.BUNDLE_REASON_DRAINED
    assert handed.result.next_step == 1 + len(handed.steps)
    assert await asyncio.wait_for(leaving.process.wait(), 120) == 0
    return handed


async def last_checkpoints_before_the_kill(
    victim: Denoiser, text: bytes, boundary: int, runs: dict[str, dict[str, Any]]
) -> dict[str, Received]:
    """Run all until each has sent a checkpoint from behind the boundary and finished another step, then kill -9."""
    policy = denoiser_pb2.CheckpointPolicy(every_steps=3)
    ready: set[str] = set()

    async def until_killed(name: str) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        newest = 0
        call = victim.caller.stub.Denoise(requests(start(text, checkpoints=policy, **runs[name]), text))
        with suppress(grpc.aio.AioRpcError):
            async for response in call:
                yield response
                if response.WhichOneof("message") == "bundle":
                    newest = response.bundle.next_step
                if response.WhichOneof("message") == "step" and newest >= boundary:
                    ready.add(name)
                if len(ready) == len(runs):
                    victim.process.kill()

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(collect(until_killed(name))) for name in runs}
    outcomes = {name: task.result() for name, task in tasks.items()}
    assert all(outcome.result is None for outcome in outcomes.values())
    assert await victim.process.wait() == -signal.SIGKILL
    return {name: outcome.bundles[-1] for name, outcome in outcomes.items()}


async def test_a_folder_that_must_not_be_served_is_refused_at_start(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"model_index\.json"):
        async with serve(model=tmp_path):
            pass
