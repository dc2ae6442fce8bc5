"""Small models with random weights, and a denoiser that serves them over a socket."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from models.untrained import write_untrained
from services.chassis.channels import open_channel
from services.chassis.lifecycle import run_server
from services.denoiser.config import DenoiserConfig
from services.denoiser.pool import ExpertPool
from services.denoiser.service import open_denoiser
from services.model.folder import ModelFolder
from tests.denoiser.caller import Caller

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Caller]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and none is visible")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture(scope="session")
def one_expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "one", experts=1)


@pytest.fixture(scope="session")
def pool(untrained: Path) -> ExpertPool:
    return ExpertPool.load(ModelFolder(untrained), "both", torch.float32, torch.device("cpu"))


@pytest.fixture
def serve(untrained: Path) -> Serve:
    """`async with serve(...) as caller`: a denoiser of the untrained model; settings as in `DenoiserConfig`."""

    @asynccontextmanager
    async def served(**settings: Any) -> AsyncIterator[Caller]:
        # On the CPU, whatever the machine has: what is for a GPU says so.
        config = DenoiserConfig(**{"model": untrained, "listen": "127.0.0.1:0", "device": "cpu", **settings})
        async with (
            run_server(config, "denoiser", partial(open_denoiser, config)) as running,
            open_channel(running.address) as channel,
        ):
            yield Caller(channel, running.address, running.draining)

    return served


@pytest.fixture
async def caller(serve: Serve) -> AsyncIterator[Caller]:
    async with serve(slots=2) as caller:
        yield caller
