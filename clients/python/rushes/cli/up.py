"""`rushes up`: the four services as processes of their own, kept running."""

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rushes.cli.interrupt import STOP_SIGNALS
from rushes.cli.model_choice import ModelChoice
from rushes.cli.refusal import CommandRefused
from rushes.cli.signing import signing_settings
from rushes.cli.state import Holder, StateFolder
from rushes.cli.supervisor import Program, Supervised, inherited, python_module

STAGES = ("encoder", "denoiser", "postprocess")
DEFAULT_LISTEN = "127.0.0.1:50050"

NOT_FOR_STAGES = (
    "RUSHES_LISTEN",
    "RUSHES_METRICS_PORT",
    "RUSHES_TLS_CERTIFICATE",
    "RUSHES_TLS_KEY",
    "RUSHES_TLS_AUTHORITY",
)
"""These are the gateway's: the stages are reached over Unix sockets in a private folder."""

STOP_MARGIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UpSettings:
    """What `rushes up` was told; None leaves it to the services."""

    model: ModelChoice
    listen: str | None = None
    device: str | None = None
    dtype: str | None = None
    metrics_port: int | None = None
    log_level: str | None = None
    grace_seconds: float = 30.0


async def run_up(settings: UpSettings, state: StateFolder) -> None:
    """Run all services until SIGTERM or SIGINT; prints `ready <address>` once all of them serve.

    Raises `CommandRefused` for a service that cannot start.
    """
    async with state.held("up", _refuse_company) as hold:
        if isinstance(hold, Holder):
            _refuse_company(hold)
        with tempfile.TemporaryDirectory(prefix="rushes-") as sockets:
            if settings.model.missing:
                await _write_untrained(settings.model)
            suite = [Supervised(program, _pass_on) for program in _programs(settings, state, Path(sockets))]
            stages, gateway = suite[:-1], suite[-1]
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()

            def on_signal() -> None:
                if stop.is_set():
                    for child in suite:
                        child.kill()
                stop.set()

            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, on_signal)
            running: list[asyncio.Task[None]] = []
            try:
                for shift in (stages, [gateway]):
                    running += [asyncio.create_task(child.run()) for child in shift]
                    await _until_ready(shift, running, stop)
                if not stop.is_set():
                    hold.serve_at(gateway.address)
                    sys.stdout.write(f"ready {gateway.address}\n")
                    sys.stdout.flush()
                await _first_of(stop, running)
            finally:
                # The gateway hands its work back while the stages still answer it.
                grace = settings.grace_seconds + STOP_MARGIN_SECONDS
                await gateway.stop(grace)
                async with asyncio.TaskGroup() as group:
                    for child in stages:
                        group.create_task(child.stop(grace))
                if running:
                    await asyncio.wait(running)
            for task in running:
                task.result()


def _programs(settings: UpSettings, state: StateFolder, sockets: Path) -> list[Program]:
    at = {name: f"unix:{sockets / name}.sock" for name in STAGES}
    weights = _flags(model=str(settings.model.path), device=settings.device, dtype=settings.dtype)
    every = _flags(log_level=settings.log_level, grace_seconds=settings.grace_seconds)

    def metrics(offset: int) -> list[str]:
        port = settings.metrics_port
        return _flags(metrics_port=port + offset if port else port)

    listen = settings.listen or (None if "RUSHES_LISTEN" in os.environ else DEFAULT_LISTEN)
    own = {"postprocess": _flags(**signing_settings(state, listen or os.environ["RUSHES_LISTEN"]))}
    programs = [
        Program(
            name=name,
            argv=python_module(
                f"services.{name}",
                *_flags(listen=at[name]),
                *weights,
                *every,
                *metrics(offset),
                *own.get(name, []),
            ),
            environment=inherited(without=NOT_FOR_STAGES),
        )
        for offset, name in enumerate(STAGES, 1)
    ]
    # A database or a store that the environment names is the operator's choice.
    database = None if "RUSHES_DATABASE_URL" in os.environ else state.database_url
    artifacts = None if "RUSHES_ARTIFACTS_URL" in os.environ else state.artifacts_url
    flags = _flags(listen=listen, database_url=database, artifacts_url=artifacts, **at)
    argv = python_module("services.gateway", *flags, *every, *metrics(0))
    return [*programs, Program(name="gateway", argv=argv, environment=inherited())]


def _flags(**values: object) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            flags += ["--" + name.replace("_", "-"), str(value)]
    return flags


async def _until_ready(group: list[Supervised], running: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Wait until each of the group serves. A failed child, or the signal, ends the waiting."""
    for child in group:
        await _first_of(child.ready, running, stop)
        if stop.is_set():
            return


async def _first_of(event: asyncio.Event, running: list[asyncio.Task[None]], *others: asyncio.Event) -> None:
    waiting = [asyncio.create_task(one.wait()) for one in (event, *others)]
    try:
        done, _ = await asyncio.wait([*waiting, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def _write_untrained(model: ModelChoice) -> None:
    # In a process of its own: the supervisor stays free of torch.
    _pass_on("up", "writing an untrained model: its picture will be noise")
    process = await asyncio.create_subprocess_exec(*python_module("rushes.cli.model_choice", str(model.path)))
    if await process.wait() != 0:
        raise CommandRefused("--model", "the untrained model could not be written")


def _refuse_company(holder: Holder) -> NoReturn:
    where = f" at {holder.gateway}" if holder.gateway else ""
    raise CommandRefused(
        "--state", f"is in use by process {holder.pid}{where}; another --state runs side by side", code=3
    )


def _pass_on(name: str, line: str) -> None:
    with suppress(BrokenPipeError):
        sys.stderr.write(f"[{name:<11}] {line}\n")
        sys.stderr.flush()
