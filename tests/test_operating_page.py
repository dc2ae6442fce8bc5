"""The page for operators names what there is, and all of it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py")]


def test_the_tables_of_variables_are_those_of_the_configurations():
    check = [sys.executable, str(ROOT / "scripts" / "configuration.py"), "--check"]
    subprocess.run(check, check=True, cwd=ROOT)


def test_every_variable_that_the_page_names_is_one_that_a_service_reads():
    told, _, tables = PAGE.partition("<!-- variables")
    known = set(re.findall(r"^\| `(RUSHES_\w+)`", tables, re.MULTILINE))
    assert len(known) > 50
    assert set(re.findall(r"RUSHES_\w+", told)) <= known


def test_every_reason_that_the_page_names_is_one_that_a_service_gives():
    reasons = PAGE.partition("## What a reason means")[2].partition("## Every variable")[0]
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", reasons)) - {"MAX_WAIT_SECONDS"}
    given = {reason for source in SOURCES for reason in re.findall(r'"([A-Z]+_[A-Z_]+)"', source)}
    variables = {name for name in named if name.startswith("RUSHES_")}
    assert len(named) > 25
    assert named - variables <= given


def test_every_command_of_the_administrator_on_the_page_is_one():
    for command, options in re.findall(r"^rushes admin (\w+)(.*)$", PAGE, re.MULTILINE):
        told = subprocess.run(
            [sys.executable, "-m", "rushes.cli", "admin", command, "--help"],
            check=True,
            capture_output=True,
            text=True,
            env={"COLUMNS": "200", "PATH": ""},
        ).stdout
        for option in re.findall(r"(--[a-z-]+)", options.partition("#")[0]):
            assert option in told
