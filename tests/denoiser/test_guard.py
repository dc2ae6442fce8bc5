"""A prediction that is not finite, or black, ends the run at that step, and says so."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
import torch

from services.chassis.errors import FailedPrecondition, RushesError, from_rpc_error
from services.denoiser.guard import JUDGED_FROM, Guard
from services.denoiser.sampler import Step
from services.denoiser.solvers import SolverState
from services.model.manifest import LatentRgb
from tests.denoiser.caller import STEPS, Caller, conditioning, requests, start
from tests.denoiser.conftest import Serve

SHARP = LatentRgb(factors=((1.0, 1.0, 1.0),) + ((0.0, 0.0, 0.0),) * 15, bias=(0.0, 0.0, 0.0))
"""The first channel is the light, from -1 to 1."""


@contextmanager
def broken_from(forward: int, value: float) -> Iterator[None]:
    """Experts whose velocity is `value` all over from the forward pass of that number on."""
    count = 0

    def hook(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal count
        if not (isinstance(module, torch.nn.Linear) and module.out_features == 64):
            return None
        count += 1
        return torch.full_like(output, value) if count > forward else None

    with torch.nn.modules.module.register_module_forward_hook(hook):
        yield


async def refused(caller: Caller, **fields: object) -> tuple[list[int], RushesError]:
    """The steps that were reported, and the error that followed."""
    text, steps = conditioning(), list[int]()
    try:
        async for response in caller.stub.Denoise(requests(start(text, **fields), text)):
            if response.HasField("step"):
                steps.append(response.step.index)
    except grpc.aio.AioRpcError as error:
        return steps, from_rpc_error(error)
    raise AssertionError("the run was not refused")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_values_that_are_not_finite_end_the_run_at_their_step(serve: Serve, value: float) -> None:
    async with serve(slots=1) as caller:
        whole = await caller.denoise()
        with broken_from(2 * 3, value):
            steps, error = await refused(caller)
        again = await caller.denoise()

    assert isinstance(error, FailedPrecondition)
    assert error.reason == "LATENTS_NOT_FINITE"
    assert error.metadata["check"] == "not_finite"
    assert len(steps) < STEPS
    assert error.metadata["step"] == str(steps[-1])
    assert torch.equal(again.latents, whole.latents)


def _step(light: float, *, sigma: float, lit: int = 0) -> Step:
    """A step whose prediction is as light as that, and white in so many of its 64 places."""
    x0 = torch.zeros(1, 16, 1, 8, 8)
    x0[:, 0] = light
    x0[:, 0].view(-1)[:lit] = 1.0
    v = torch.ones_like(x0)
    return Step(state=SolverState.start(x0), x=x0 + sigma * v, v=v, sigma=sigma)


def _verdict(step: Step, black_share: float = 0.98) -> FailedPrecondition | None:
    guard = Guard(SHARP, torch.device("cpu"), black_share=black_share)
    (seen,) = guard.watched(one for one in [step])
    return guard.verdict(seen)


def test_a_black_prediction_is_told_from_a_dark_one() -> None:
    black = _verdict(_step(-0.95, sigma=0.5))

    assert black is not None
    assert (black.reason, black.metadata["check"], black.metadata["score"]) == ("PREDICTION_BLACK", "black", "1")
    assert _verdict(_step(-0.95, sigma=0.5, lit=2)) is None
    assert _verdict(_step(-0.7, sigma=0.5)) is None


def test_darkness_near_pure_noise_says_nothing() -> None:
    assert _verdict(_step(-0.95, sigma=JUDGED_FROM + 0.01)) is None
    assert _verdict(_step(-0.95, sigma=JUDGED_FROM)) is not None


def test_latents_of_other_channels_than_the_map_are_not_judged_by_it() -> None:
    step = _step(-0.95, sigma=0.5)
    state, x, v = step.state, step.x.repeat(1, 3, 1, 1, 1), step.v.repeat(1, 3, 1, 1, 1)

    assert _verdict(Step(state=state, x=x, v=v, sigma=0.5)) is None


def test_a_caller_may_want_black() -> None:
    assert _verdict(_step(-0.95, sigma=0.5), black_share=0.0) is None


async def test_a_share_beyond_one_is_refused(serve: Serve) -> None:
    async with serve(slots=1) as caller:
        _, error = await refused(caller, black_share=1.5)

    assert [violation.field for violation in getattr(error, "violations", ())] == ["start.black_share"]
