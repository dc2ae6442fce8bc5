"""The four services as separate processes, which a test may kill, stop and start again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS = 300.0
STOP_SECONDS = 120.0


@dataclass(kw_only=True, slots=True)
class ServiceProcess:
    """One service: `python -m services.NAME`, at a Unix socket that stays the same over restarts."""

    name: str
    folder: Path
    flags: Mapping[str, str]
    label: str = ""
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The socket it serves at."""
        return f"unix:{self.folder}/{self.label or self.name}.sock"

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The running process."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    async def start(self) -> None:
        """Start it and wait for its `ready` line. Raises `RuntimeError`, with its log, if it ends before."""
        arguments = [part for name, value in self.flags.items() for part in (f"--{name}", value)]
        with (self.folder / f"{self.label or self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"services.{self.name}",
                "--listen",
                self.address,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        if self.process.stdout is None:
            raise RuntimeError("started without a pipe")
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS)
        if not line.startswith(b"ready "):
            raise RuntimeError(f"{self.name} did not start:\n{self.log()[-4000:]}")

    def log(self) -> str:
        """What it logged so far."""
        return (self.folder / f"{self.label or self.name}.log").read_text()

    def processor_seconds(self) -> float:
        """Processor time that it used so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    async def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """The running services by label: `encoder`, `denoiser` (or `high`, `low`), `postprocess`, `gateway`."""

    services: Mapping[str, ServiceProcess]

    @property
    def address(self) -> str:
        """The gateway."""
        return self.services["gateway"].address


@asynccontextmanager
async def running_suite(
    folder: Path, model: Path, *, denoisers: Mapping[str, Mapping[str, str]] | None = None, **gateway: str
) -> AsyncIterator[Suite]:
    """All services for the block, the gateway stopped first. `denoisers`: flags by label; None is one for all."""
    weights = {"model": str(model), "device": "cpu", "dtype": "float32"}
    stages = {name: ServiceProcess(name=name, folder=folder, flags=weights) for name in ("encoder", "postprocess")}
    for label, flags in (denoisers or {"denoiser": {}}).items():
        stages[label] = ServiceProcess(name="denoiser", label=label, folder=folder, flags={**weights, **flags})
    pool = ",".join(stage.address for stage in stages.values() if stage.name == "denoiser")
    flags = {
        "encoder": stages["encoder"].address,
        "denoiser": pool,
        "postprocess": stages["postprocess"].address,
        "database-url": f"sqlite:///{folder}/rushes.db",
        "artifacts-url": str(folder / "artifacts"),
        **{name.replace("_", "-"): value for name, value in gateway.items()},
    }
    services = {**stages, "gateway": ServiceProcess(name="gateway", folder=folder, flags=flags)}
    try:
        async with asyncio.TaskGroup() as group:
            for service in services.values():
                group.create_task(service.start())
        yield Suite(services=services)
    finally:
        for label in reversed(services):
            if services[label]._process is not None:
                await services[label].stop()
