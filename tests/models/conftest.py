from pathlib import Path

import pytest
import torch

from models.tiny.evaluate import WEIGHTS, load_settings
from models.tiny.sampler import Sampler, Settings
from models.tiny.world.clip import Actor, Clip


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights() -> Path:
    return WEIGHTS


@pytest.fixture(scope="session")
def sampler(weights: Path) -> Sampler:
    return Sampler.load(weights)


@pytest.fixture(scope="session")
def settings(weights: Path) -> Settings:
    return load_settings(weights)


@pytest.fixture
def red_ball() -> Clip:
    return Clip(
        actors=(
            Actor(
                colour="red",
                shape="circle",
                action="left",
                start=(0.75, 0.5),
                end=(0.25, 0.5),
                radius_start=0.2,
                radius_end=0.2,
            ),
        ),
        scene="sea",
        camera="static",
        mood="neutral",
        phase=(0.1, 0.2),
    )
