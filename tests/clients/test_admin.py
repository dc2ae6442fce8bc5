import sys
from pathlib import Path

import pytest

from rushes.cli.__main__ import main


@pytest.fixture
def rushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`rushes admin` on a state folder of its own; returns exit code, stdout and stderr."""
    monkeypatch.setenv("RUSHES_STATE", str(tmp_path))
    monkeypatch.delenv("RUSHES_DATABASE_URL", raising=False)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["rushes", "admin", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run


def test_a_quota_changes_only_in_what_is_given(rushes) -> None:
    rushes("quota", "acme", "--weight", "2", "--max-running", "3")
    rushes("quota", "acme", "--max-queued", "50")

    _, out, _ = rushes("tenants")
    assert out.splitlines()[1].split() == ["acme", "2", "3", "50", "-", "-"]


def test_a_key_is_shown_once_and_known_by_its_prefix(rushes) -> None:
    rushes("quota", "acme")

    _, key, _ = rushes("issue", "acme", "--scope", "read", "--days", "7")
    prefix = key.split("_")[1]
    _, listed, _ = rushes("keys", "acme")
    assert key.strip() not in listed
    assert listed.splitlines()[1].split()[0] == prefix
    assert listed.splitlines()[1].split()[3:] == ["-", "read"]

    assert rushes("revoke", prefix) == (None, "", "")
    _, listed, _ = rushes("keys", "acme")
    assert listed.splitlines()[1].split()[3] != "-"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("issue", "nobody"), "There is no such tenant."),
        (("revoke", "abcd"), "There is no such key."),
        (("quota", "acme", "--weight", "0"), "Invalid value for '--weight'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(rushes, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = rushes(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"rushes: {complaint}")


def test_a_scope_that_is_none_is_refused(rushes) -> None:
    rushes("quota", "acme")
    code, _, err = rushes("issue", "acme", "--scope", "everything")
    assert (code, err) == (2, "rushes: There is no scope everything; there are generate, read, usage.\n")


def test_a_tenant_without_work_has_no_usage(rushes) -> None:
    _, out, _ = rushes("usage", "acme")
    assert out.splitlines() == ["day  clips  encode  denoise  render  frames  bytes"]
