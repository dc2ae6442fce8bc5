import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rushes.cli.refusal import CommandRefused
from rushes.cli.supervisor import Program, Supervised, inherited

READY = "print('ready stage unix:/there.sock', flush=True)\n"
COUNT = "import os, pathlib, sys, time\nlog = pathlib.Path(sys.argv[1])\nlog.open('a').write('x')\n"
DIES_ONCE = COUNT + READY + "os._exit(9) if log.read_text() == 'x' else time.sleep(60)\n"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(60)\n"
OBEDIENT = "import time\n" + READY + "time.sleep(60)\n"


@asynccontextmanager
async def running(code: str, *arguments: str) -> AsyncIterator[tuple[Supervised, "asyncio.Task[None]", list[str]]]:
    lines: list[str] = []
    program = Program(name="stage", argv=(sys.executable, "-c", code, *arguments), environment=inherited())
    child = Supervised(program, lambda _name, line: lines.append(line))
    task = asyncio.create_task(child.run())
    try:
        yield child, task, lines
    finally:
        child.kill()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for is a count, not an event
        await asyncio.sleep(0.02)


async def test_what_dies_after_it_was_ready_is_started_again(tmp_path: Path) -> None:
    async with running(DIES_ONCE, str(tmp_path / "log")) as (child, _, lines):
        await child.ready.wait()
        await until(lambda: child.starts == 2)
        await child.ready.wait()

        assert child.address == "unix:/there.sock"
        assert lines == ["ended with exit code 9; starting it again in 0.5 s"]


async def test_what_was_never_ready_is_not_started_again() -> None:
    async with running("import sys\nprint('no such model', file=sys.stderr)\nsys.exit(2)") as (child, task, lines):
        with pytest.raises(CommandRefused, match="stage: could not start: ended with exit code 2") as refused:
            await task

    assert (child.starts, refused.value.code, lines) == (1, 2, ["no such model"])


async def test_a_stop_is_a_sigterm_and_ends_the_supervision() -> None:
    async with running(OBEDIENT) as (child, task, lines):
        await child.ready.wait()
        await child.stop(grace_seconds=30.0)
        await task

    assert (child.starts, lines, child.ready.is_set()) == (1, [], False)


async def test_what_does_not_stop_within_the_grace_is_killed() -> None:
    async with running(STUBBORN) as (child, task, lines):
        await child.ready.wait()
        await child.stop(grace_seconds=0.05)
        await task

    assert lines == ["did not stop within 0.05 s and is killed"]


async def test_a_child_is_not_in_the_terminal_s_process_group() -> None:
    code = "import os, time\nprint('group', os.getpgid(0) == os.getpid(), flush=True)\n" + OBEDIENT
    async with running(code) as (child, _, lines):
        await child.ready.wait()

    assert lines == ["group True"]


async def test_lines_of_any_length_and_of_any_bytes_pass() -> None:
    code = "import sys\nsys.stderr.buffer.write(b'a' * 3_000_000 + b'\\n\\xff\\n')\nsys.stderr.flush()\n" + OBEDIENT
    async with running(code) as (child, _, lines):
        await child.ready.wait()
        await until(lambda: bool(lines))

    assert lines[-1] == "\ufffd"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_the_signal_that_killed_it_is_named(number: signal.Signals) -> None:
    code = f"import os\nos.kill(os.getpid(), {int(number)})"
    async with running(code) as (_, task, _):
        with pytest.raises(CommandRefused, match=f"was killed by {number.name}"):
            await task


def test_threads_of_the_children_do_not_spin_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert inherited()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert inherited()["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "PATH" not in inherited(without=["PATH"])
