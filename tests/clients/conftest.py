"""Fixtures: a scripted gateway on a Unix socket, and a client of it."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rushes.client import Client, RetryPolicy
from tests.clients.scripted_gateway import Script, serving

QUICK = RetryPolicy(first_seconds=0.001, longest_seconds=0.01, patience_seconds=5.0, silence_seconds=0.5)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rushes-") as folder:
        yield f"unix:{Path(folder) / 'gateway.sock'}"


@pytest.fixture
async def gateway(script: Script, address: str) -> AsyncIterator[str]:
    async with serving(script, address):
        yield address


@pytest.fixture
async def client(gateway: str) -> AsyncIterator[Client]:
    async with Client(gateway, retry=QUICK) as made:
        yield made
