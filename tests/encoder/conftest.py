import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from models.untrained import write_untrained
from rushes.v1 import encoder_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.lifecycle import run_server
from services.encoder.config import EncoderConfig
from services.encoder.service import open_encoder

OpenStub = Callable[..., AbstractAsyncContextManager[encoder_pb2_grpc.EncoderServiceStub]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture
def encoder(model: Path) -> OpenStub:
    """An encoder on a socket, and a stub that calls it."""

    @asynccontextmanager
    async def serve(**settings: object) -> AsyncIterator[encoder_pb2_grpc.EncoderServiceStub]:
        config = EncoderConfig(model=model, device="cpu", **settings)
        async with (
            run_server(config, "encoder", partial(open_encoder, config)) as running,
            open_channel(running.address) as channel,
        ):
            yield encoder_pb2_grpc.EncoderServiceStub(channel)

    return serve
