"""One untrained model for all: the same classes as A14B, small enough for two cores."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model, written by a process of its own so that this one stays free of torch."""
    folder = tmp_path_factory.mktemp("model") / "untrained"
    code = "import sys; from pathlib import Path; from models.untrained import write_untrained; "
    subprocess.run([sys.executable, "-c", code + "write_untrained(Path(sys.argv[1]))", str(folder)], check=True)
    return folder
