from pathlib import Path

import pytest

from rushes.cli.signing import OPERATORS, signing_settings
from rushes.cli.state import StateFolder


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    for name in OPERATORS:
        monkeypatch.delenv(name, raising=False)
    return StateFolder(tmp_path / "state")


@pytest.mark.parametrize("listen", ["", "127.0.0.1:50050", "unix:/tmp/a.sock,localhost:1"])
def test_a_suite_for_this_machine_signs_with_a_certificate_of_its_own(state: StateFolder, listen: str) -> None:
    settings = signing_settings(state, listen)

    assert set(settings) == {"c2pa_certificate", "c2pa_key"}
    assert all(path.is_file() and path.parent == state.certificates for path in settings.values())


@pytest.mark.parametrize("listen", ["0.0.0.0:50050", "127.0.0.1:1,10.0.0.4:50050"])
def test_a_suite_for_other_machines_makes_no_certificate(state: StateFolder, listen: str) -> None:
    assert signing_settings(state, listen) == {}
    assert not state.certificates.exists()


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_operator_names_wins(state: StateFolder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "something")

    assert signing_settings(state) == {}
    assert not state.certificates.exists()
