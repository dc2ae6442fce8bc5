"""A gateway as a process of its own, which a test may kill; and a viewer of it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from tests.gateway.stage_servers import Addresses
from tests.gateway.suite import SETTINGS


@asynccontextmanager
async def process(
    at: Addresses,
    database_url: str,
    folder: Path,
    *,
    program: Sequence[str] = ("-m", "services.gateway"),
    **more: Any,
) -> AsyncIterator[tuple[Process, str]]:
    """A gateway in a process of its own, and its address. `program`: what Python runs."""
    settings = {**SETTINGS, "encoder": at.encoder, "denoiser": at.denoiser, "postprocess": at.postprocess}
    settings |= {"database_url": database_url, "artifacts_url": str(folder / "artifacts"), "lease_seconds": 1, **more}
    environment = {f"RUSHES_{name.upper()}": str(value) for name, value in settings.items()}
    running = await asyncio.create_subprocess_exec(
        sys.executable, *program, env={**os.environ, **environment}, stdout=PIPE
    )
    try:
        ready = (await running.stdout.readline()).decode().split()
        assert ready[:2] == ["ready", "gateway"]
        yield running, ready[2]
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def watch(address: str, generation_id: str, after: int) -> list[gp.GenerationEvent]:
    """Every durable event after the cursor, until the stream ends or breaks."""
    found: list[gp.GenerationEvent] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = GenerationServiceStub(channel).WatchGeneration(
            gp.WatchGenerationRequest(id=generation_id, after_sequence=after)
        )
        try:
            async for response in call:
                found.extend([response.event] if response.event.sequence else [])
        except grpc.aio.AioRpcError:
            pass
    return found
