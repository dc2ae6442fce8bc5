import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from models.untrained import write_untrained
from rushes.v1 import postprocess_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.lifecycle import run_server
from services.postprocess.config import PostprocessConfig
from services.postprocess.frames import Pixels
from services.postprocess.service import open_postprocess
from tests.postprocess.calls import Service

OpenService = Callable[..., AbstractAsyncContextManager[Service]]
WAN21 = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
EMBEDDED = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.1 * (channel % 3) for channel in range(16)],
    "latents_std": [0.5 + 0.1 * (channel % 4) for channel in range(16)],
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(params=[WAN21, EMBEDDED], ids=["wan21", "embedded"])
def make_vae(request: pytest.FixtureRequest) -> Callable[[], AutoencoderKLWan]:
    def make() -> AutoencoderKLWan:
        torch.manual_seed(3)
        return AutoencoderKLWan(**request.param).eval()

    return make


@pytest.fixture
def moving_square() -> Callable[..., Pixels]:
    """Frames of a bright square that moves to the right over a gradient."""

    def draw(count: int, *, width: int = 64, height: int = 48, first: int = 0) -> Pixels:
        rows, columns = np.mgrid[:height, :width]
        ground = np.stack([rows * 2, columns * 2, 160 - rows - columns // 2], -1).clip(0, 255).astype(np.uint8)
        frames = np.repeat(ground[None], count, axis=0)
        for index in range(count):
            left = (first + index) * 2 % (width - 12)
            frames[index, 12:28, left : left + 12] = (230, 220, 40)
        return frames

    return draw


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture
def postprocess(model: Path) -> OpenService:
    @asynccontextmanager
    async def serve(**settings: object) -> AsyncIterator[Service]:
        config = PostprocessConfig(model=model, device="cpu", **settings)
        async with (
            run_server(config, "postprocess", partial(open_postprocess, config)) as running,
            open_channel(running.address) as channel,
        ):
            yield Service(stub=postprocess_pb2_grpc.PostprocessServiceStub(channel), running=running)

    return serve
