"""Cancel, deadline and disconnect stop the device within one step and free the slot."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
import torch

from services.chassis.channels import open_channel
from services.chassis.errors import Exhausted, from_rpc_error
from tests.denoiser.caller import STEPS, Caller, conditioning, requests, start
from tests.denoiser.conftest import Serve
from tests.denoiser.test_service import SLOW


class Evaluations:
    """How often an expert of the process has finished a forward pass."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: torch.nn.Module, _inputs: object, _output: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 64:
            self.count += 1


@pytest.fixture
def evaluations() -> Iterator[Evaluations]:
    counter = Evaluations()
    with torch.nn.modules.module.register_module_forward_hook(counter):
        yield counter


@pytest.fixture
async def lone(serve: Serve) -> AsyncIterator[Caller]:
    async with serve(slots=1) as caller:
        yield caller


async def begin(caller: Caller, timeout: float | None = None) -> grpc.aio.StreamStreamCall:
    """A long call that has finished its first step."""
    text = conditioning()
    call = caller.stub.Denoise(requests(start(text, **SLOW), text), timeout=timeout)
    async for response in call:
        if response.WhichOneof("message") == "step":
            break
    return call


async def free(caller: Caller) -> None:
    """Returns when the one slot is free again, by using it."""
    async with asyncio.timeout(120):
        while True:
            try:
                outcome = await caller.denoise()
            except grpc.aio.AioRpcError as error:
                if not isinstance(from_rpc_error(error), Exhausted):
                    raise
                await asyncio.sleep(0.01)
            else:
                assert len(outcome.steps) == STEPS
                return


async def test_a_cancel_stops_the_device_within_one_step_and_frees_the_slot(
    lone: Caller, evaluations: Evaluations
) -> None:
    call = await begin(lone)
    before = evaluations.count
    call.cancel()
    await free(lone)
    # The step in work, and one more if the cancel crossed its end.
    assert evaluations.count - STEPS - before <= 2


async def test_a_deadline_stops_the_device_and_frees_the_slot(lone: Caller, evaluations: Evaluations) -> None:
    call = await begin(lone, timeout=6.0)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in call:
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    before = evaluations.count
    await free(lone)
    assert evaluations.count - STEPS - before <= 2


async def test_a_disconnect_stops_the_device_and_frees_the_slot(serve: Serve, evaluations: Evaluations) -> None:
    async with serve(slots=1) as caller:
        async with open_channel(caller.address) as vanishing:
            await begin(Caller(vanishing))
            before = evaluations.count
        await free(caller)
    assert evaluations.count - STEPS - before <= 2


async def test_a_caller_that_never_finishes_its_request_is_let_go_by_its_deadline(lone: Caller) -> None:
    text = conditioning()

    async def stalling() -> AsyncIterator[object]:
        yield next(requests(start(text), text))
        await asyncio.sleep(60)

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in lone.stub.Denoise(stalling(), timeout=0.3):
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await free(lone)


async def test_a_cancelled_run_does_not_disturb_its_neighbour(caller: Caller) -> None:
    alone = await caller.denoise()
    text = conditioning()
    doomed = caller.stub.Denoise(requests(start(text, **SLOW), text))
    await anext(aiter(doomed))
    neighbour = asyncio.create_task(caller.denoise())
    await asyncio.sleep(0.05)
    doomed.cancel()
    assert (await neighbour).bundles[-1].payload == alone.bundles[-1].payload
