"""A child process that is kept running."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rushes.cli.refusal import CommandRefused

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
STEADY_SECONDS = 60.0
LINE_BYTES = 2**20

SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of torch that wait for each other otherwise spin, and hold the very core that the others wait for: on busy
cores a solver step takes a hundred times as long. The user's own setting wins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run under which name."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]


class Supervised:
    """Runs a program, starts it again when it dies, and passes its log on line by line.

    The program says `ready <name> <address>` on stdout when it serves. One that dies before it ever did is not started
    again: what is wrong with it will not mend itself.
    """

    def __init__(self, program: Program, on_line: Callable[[str, str], None]) -> None:
        self.name = program.name
        self.ready = asyncio.Event()
        self.address = ""
        self.starts = 0
        self._program = program
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep it running until `stop`. Raises `CommandRefused` if it dies before it was ready."""
        wait = FIRST_WAIT_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once()
            if self._stopping.is_set():
                return
            if not self.address:
                raise CommandRefused(self.name, f"could not start: {_ending(code)}; its log says why", code=_code(code))
            wait = FIRST_WAIT_SECONDS if time.monotonic() - began > STEADY_SECONDS else wait
            self._on_line(self.name, f"{_ending(code)}; starting it again in {wait:g} s")
            try:
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
            except TimeoutError:
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to drain; end it when the grace is over. Returns when it has ended."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await process.wait()
        except TimeoutError:
            self._on_line(self.name, f"did not stop within {grace_seconds:g} s and is killed")
            _signal(process, signal.SIGKILL)
            await process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    async def _run_once(self) -> int:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which knows the right order.
        process = await asyncio.create_subprocess_exec(
            *self._program.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._program.environment,
            start_new_session=True,
            limit=LINE_BYTES,
        )
        self._process = process
        self.starts += 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_read(process.stdout, self._on_stdout))
                group.create_task(_read(process.stderr, lambda line: self._on_line(self.name, line)))
                code = await process.wait()
        finally:
            self.ready.clear()
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await process.wait()
        return code

    def _on_stdout(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        name, _, addresses = rest.partition(" ")
        if word == "ready" and name == self.name:
            self.address = addresses.split(",")[0]
            self.ready.set()
        else:
            self._on_line(self.name, line)


def python_module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs a module with this interpreter."""
    return (sys.executable, "-m", name, *arguments)


async def _read(stream: asyncio.StreamReader | None, take: Callable[[str], None]) -> None:
    while stream is not None:
        try:
            line = await stream.readline()
        except ValueError:
            # Longer than the limit: the reader has thrown it away.
            continue
        if not line:
            return
        take(line.decode(errors="replace").rstrip())


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _code(code: int) -> int:
    return 2 if code == 2 else 4


def inherited(*, without: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment, without the named variables, for a process that shares its cores with others."""
    own = {name: value for name, value in os.environ.items() if name not in without}
    return SHARED_CORES | own
