"""The whole suite in this process: the same four gRPC servers, over Unix sockets in a private folder."""

import asyncio
import gc
import importlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from pydantic import ValidationError

import services.chassis.errors
from rushes.cli.model_choice import ModelChoice, ensure_written
from rushes.cli.refusal import CommandRefused
from rushes.cli.signing import signing_settings
from rushes.cli.state import StateFolder
from rushes.cli.supervisor import SHARED_CORES
from rushes.client import FieldViolation, InvalidRequest
from services.chassis.config import ServiceConfig
from services.chassis.lifecycle import run_server
from services.chassis.logs import configure_logging
from services.chassis.validation import validate

OnLoading = Callable[[str, float | None], None]

STAGES = ("encoder", "denoiser", "postprocess")
CONFIG_CLASSES = {
    "encoder": "EncoderConfig",
    "denoiser": "DenoiserConfig",
    "postprocess": "PostprocessConfig",
    "gateway": "GatewayConfig",
}
IMPORTS = ("torch", "transformers", "diffusers", *(f"services.{name}.service" for name in (*STAGES, "gateway")))
STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteSettings:
    """The model, and where and in which type it runs; None for the services' own choice."""

    model: ModelChoice
    device: str | None = None
    dtype: str | None = None


@asynccontextmanager
async def embedded_suite(settings: SuiteSettings, state: StateFolder, on_loading: OnLoading) -> AsyncIterator[str]:
    """Load and serve everything for the block; yields the gateway's address. The gateway is drained first.

    Raises `CommandRefused` for a model or a setting that is refused.
    """
    began = time.monotonic()
    with _logging_to(state.log), tempfile.TemporaryDirectory(prefix="rushes-") as sockets:
        at = {name: f"unix:{sockets}/{name}.sock" for name in (*STAGES, "gateway")}
        weights = _given({"model": settings.model.path, "device": settings.device, "dtype": settings.dtype})
        own = {"postprocess": signing_settings(state)}
        gateway = _gateway_settings(state) | {name: at[name] for name in STAGES}
        suite = [
            *(_Service(name, {"listen": at[name], **weights, **own.get(name, {})}, on_loading) for name in STAGES),
            _Service("gateway", {"listen": at["gateway"]} | gateway, on_loading),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                await _import_services(on_loading)
                await asyncio.to_thread(ensure_written, settings.model)
                tasks = [group.create_task(service.run()) for service in suite]
                for service in suite:
                    await service.ready.wait()
                on_loading("suite", time.monotonic() - began)
                try:
                    yield at["gateway"]
                finally:
                    for service, task in reversed(list(zip(suite, tasks, strict=True))):
                        service.stop.set()
                        await asyncio.wait([task])
        except BaseExceptionGroup as failures:
            raise _refusal(_first(failures)) from None


@asynccontextmanager
async def embedded_gateway(state: StateFolder) -> AsyncIterator[str]:
    """Only the gateway, to read what the state folder holds; yields its address."""
    with _logging_to(state.log), tempfile.TemporaryDirectory(prefix="rushes-") as sockets:
        address = f"unix:{sockets}/gateway.sock"
        absent = {name: f"unix:{sockets}/{name}.sock" for name in STAGES}
        values = {"listen": address, "stage_wait_seconds": 0.0} | _gateway_settings(state) | absent
        service = _Service("gateway", values, lambda _name, _seconds: None)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(service.run())
                await service.ready.wait()
                try:
                    yield address
                finally:
                    service.stop.set()
        except BaseExceptionGroup as failures:
            raise _refusal(_first(failures)) from None


def check_request(request: Message) -> None:
    """Judge a request by the rules of the protos before the suite is loaded for it. Raises `InvalidRequest`."""
    try:
        validate(request)
    except services.chassis.errors.InvalidRequest as refused:
        violations = tuple(FieldViolation(field=one.field, rule=one.rule) for one in refused.violations)
        raise InvalidRequest(refused.message, reason=refused.reason, violations=violations) from None


class _Service:
    """One service of the suite, loaded and served by a task of its own."""

    def __init__(self, name: str, values: dict[str, Any], on_loading: OnLoading) -> None:
        self.ready = asyncio.Event()
        self.stop = asyncio.Event()
        self._name = name
        self._values = values
        self._on_loading = on_loading

    async def run(self) -> None:
        """Serve until told to stop."""
        began = time.monotonic()
        self._on_loading(self._name, None)
        config_class = getattr(importlib.import_module(f"services.{self._name}.config"), CONFIG_CLASSES[self._name])
        opener = getattr(importlib.import_module(f"services.{self._name}.service"), f"open_{self._name}")
        config: ServiceConfig = config_class(grace_seconds=STOP_SECONDS, **self._values)
        async with run_server(config, self._name, partial(opener, config)):
            self._on_loading(self._name, time.monotonic() - began)
            self.ready.set()
            await self.stop.wait()


async def _import_services(on_loading: OnLoading) -> None:
    """Import everything, one module at a time: two threads that import torch at once would meet half-made modules.

    The collector would walk the growing heap of these thousands of modules over and over, for a quarter of the time;
    once loaded they live as long as the process.
    """
    os.environ.update(SHARED_CORES | os.environ)
    gc.disable()
    try:
        for name in IMPORTS:
            began = time.monotonic()
            on_loading(name, None)
            await asyncio.to_thread(importlib.import_module, name)
            on_loading(name, time.monotonic() - began)
        gc.freeze()
    finally:
        gc.enable()


def _gateway_settings(state: StateFolder) -> dict[str, Any]:
    return {
        "database_url": state.database_url,
        "artifacts_url": state.artifacts_url,
        "api_keys": False,
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send the log of the services to the file for the block."""
    root = logging.getLogger()
    configure_logging("embedded", "info")
    with path.open("a", encoding="utf-8") as file:
        for handler in root.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(file)
        try:
            yield
        finally:
            root.handlers.clear()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


def _refusal(failure: BaseException) -> BaseException:
    """The failure in the command line's words; unchanged if it did not come from starting the suite."""
    if isinstance(failure, ValidationError):
        detail = failure.errors()[0]
        option = "--" + "-".join(str(part) for part in detail["loc"]).replace("_", "-")
        return CommandRefused(option, detail["msg"])
    if isinstance(failure, services.chassis.errors.RushesError):
        option = "--model" if failure.reason == "MODEL_REFUSED" else "suite"
        later = isinstance(failure, services.chassis.errors.Unavailable)
        return CommandRefused(option, failure.message, code=3 if later else 2)
    return failure
