import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.chassis.channels import open_channel
from tests.chassis.probe import Caller, text
from tests.chassis.test_errors import failure


@asynccontextmanager
async def started(*flags: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chassis.process", *flags, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> list[str]:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().split()


async def test_a_service_says_ready_once_and_ends_with_zero_on_sigterm() -> None:
    async with started() as process:
        ready, name, address = await line(process)
        async with open_channel(address) as channel:
            assert (await Caller(channel).unary(text("x"))).value == "x"
        process.terminate()
        rest, _ = await process.communicate()

    assert (ready, name, rest, process.returncode) == ("ready", "probe", b"", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_lets_a_stream_end(number: signal.Signals) -> None:
    async with started() as process:
        _, _, address = await line(process)
        async with open_channel(address) as channel:
            received = []
            async for message in Caller(channel).down(text()):
                received.append(message.value)
                if len(received) == 1:
                    process.send_signal(number)
        await process.wait()

    assert received == ["working", "handed back"]
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_kills(number: signal.Signals) -> None:
    async with started() as process:
        _, _, address = await line(process)
        async with open_channel(address) as channel:

            async def endless() -> AsyncIterator[StringValue]:
                yield text("never the last")
                await asyncio.Event().wait()

            call = Caller(channel).up(endless())
            down: Any = Caller(channel).down(text())
            await down.read()
            process.send_signal(number)
            assert (await down.read()).value == "handed back"  # Draining, and held by the other call.
            process.send_signal(number)
            await process.wait()
            await failure(call)

    assert process.returncode == -number


async def test_a_signal_while_loading_ends_with_zero_and_without_ready() -> None:
    async with started("--loading", "endless") as process:
        assert process.stderr is not None
        assert b"loading" in await process.stderr.readline()
        process.terminate()
        out, _ = await process.communicate()

    assert (out, process.returncode) == (b"", 0)


async def test_a_service_that_refuses_to_start_says_why_and_ends_with_one() -> None:
    async with started("--loading", "refused") as process:
        out, log = await process.communicate()

    event = json.loads(log.splitlines()[-1])
    assert (out, process.returncode) == (b"", 1)
    assert (event["reason"], event["message"]) == ("MODEL_REFUSED", "model_index.json: is missing")
    assert "exception" not in event


async def test_a_service_that_breaks_while_loading_logs_the_trace_and_ends_with_one() -> None:
    async with started("--loading", "broken") as process:
        out, log = await process.communicate()

    assert (out, process.returncode) == (b"", 1)
    assert "ZeroDivisionError" in json.loads(log.splitlines()[-1])["exception"]


async def test_a_taken_port_ends_with_one_and_names_the_address() -> None:
    async with started() as first:
        _, _, address = await line(first)
        async with started("--listen", address) as second:
            _, log = await second.communicate()

    assert second.returncode == 1
    assert address in log.decode()


async def test_a_wrong_flag_ends_with_two_and_without_its_value() -> None:
    async with started("--key", "hunter2") as process:
        out, said = await process.communicate()

    assert (out, process.returncode) == (b"", 2)
    assert b"--key" in said
    assert b"hunter2" not in said


async def test_logs_are_json_with_the_trace_and_without_what_was_written() -> None:
    async with started() as process:
        _, _, address = await line(process)
        async with open_channel(address) as channel:
            await Caller(channel).unary(text("a red circle"))
        process.terminate()
        _, log = await process.communicate()

    events = [json.loads(row) for row in log.splitlines()]
    asked = next(event for event in events if event["event"] == "asked")
    call = next(event for event in events if event["event"] == "call")
    assert asked["trace_id"] == call["trace_id"]
    assert (asked["service"], asked["level"], call["code"]) == ("probe", "info", "OK")
    assert asked["prompt"].endswith("/12")
    assert b"red circle" not in log
    assert b"hunter2" not in log


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0:0", True), ("127.0.0.1:0", False)])
async def test_plaintext_that_other_machines_can_reach_is_warned_of(listen: str, warned: bool) -> None:
    async with started("--listen", listen) as process:
        await line(process)
        process.terminate()
        _, logged = await process.communicate()

    events = [json.loads(entry)["event"] for entry in logged.splitlines() if entry.startswith(b"{")]
    assert ("plaintext" in events) is warned
