"""A small model with random weights, written once."""

from pathlib import Path

import pytest

from models.untrained import write_untrained


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("models") / "untrained")
