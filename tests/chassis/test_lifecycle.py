import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.chassis.channels import open_channel
from services.chassis.config import ServiceConfig
from services.chassis.lifecycle import Mounted, Running, run_server
from tests.chassis.probe import NAME, Caller, Probe, echo, probing, text
from tests.chassis.test_errors import failure

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def has_files(folder: Path) -> bool:
    return any(folder.iterdir())


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    status: int = response.status
    return status


@pytest.mark.parametrize("service", ["", NAME])
async def test_a_service_that_is_loaded_is_serving(service: str) -> None:
    async with probing(Probe(unary=echo)) as probe:
        assert await health_of(probe.caller.channel, service) == SERVING


async def test_nothing_listens_before_everything_is_loaded() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    may_load, loading = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def open_service(_draining: asyncio.Event) -> AsyncIterator[list[Mounted]]:
        loading.set()
        await may_load.wait()
        yield [Probe(unary=echo).mounted]

    async def run() -> None:
        async with (
            run_server(ServiceConfig(listen=f"127.0.0.1:{port}"), "probe", open_service) as running,
            open_channel(running.address) as channel,
        ):
            assert await health_of(channel, NAME) == SERVING

    async with asyncio.TaskGroup() as group:
        group.create_task(run())
        await loading.wait()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        may_load.set()


async def test_reflection_names_every_service() -> None:
    async with probing(Probe(unary=echo)) as probe:
        stub = reflection_pb2_grpc.ServerReflectionStub(probe.caller.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for response in stub.ServerReflectionInfo(iter([asked])):
            names = {service.name for service in response.list_services_response.service}

    assert {NAME, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= names


async def test_channelz_counts_the_calls() -> None:
    async with probing(Probe(unary=echo)) as probe:
        await probe.caller.unary(text())
        stub = channelz_pb2_grpc.ChannelzStub(probe.caller.channel)
        servers = (await stub.GetServers(channelz_pb2.GetServersRequest())).server

    assert any(server.data.calls_succeeded >= 1 for server in servers)


async def test_draining_says_not_serving_while_calls_are_still_taken() -> None:
    async with probing(Probe(unary=echo), drain_seconds=0) as other, asyncio.TaskGroup() as group:
        seen: list[int] = []
        watching, drained = asyncio.Event(), asyncio.Event()

        async def watch(address: str) -> None:
            async with open_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                async for response in stub.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                    seen.append(response.status)
                    watching.set()
                    if response.status == NOT_SERVING:
                        assert (await Caller(channel).unary(text("late"))).value == "late"
                        drained.set()
                        return

        config = ServiceConfig(drain_seconds=1)
        async with run_server(config, "probe", Probe(unary=echo).open_service()) as running:
            group.create_task(watch(running.address))
            await watching.wait()
        await drained.wait()
        assert await health_of(other.caller.channel, NAME) == SERVING

    assert seen == [SERVING, NOT_SERVING]


async def test_a_call_in_flight_ends_properly_after_draining_begins() -> None:
    async def down(_request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
        yield text("working")
        await running.draining.wait()
        yield text("handed back")

    async with asyncio.TaskGroup() as group:
        received: list[str] = []
        started = asyncio.Event()

        async def read(address: str) -> None:
            async with open_channel(address) as channel:
                async for message in Caller(channel).down(text()):
                    received.append(message.value)
                    started.set()

        async with run_server(ServiceConfig(), "probe", Probe(down=down).open_service()) as running:
            group.create_task(read(running.address))
            await started.wait()

    assert received == ["working", "handed back"]


async def test_a_call_that_outlives_the_grace_is_cancelled_and_its_caller_told_to_go_elsewhere() -> None:
    cancelled = asyncio.Event()

    async def unary(_request: StringValue, _context: Any) -> StringValue:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return text()

    started = asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def call(address: str) -> grpc.StatusCode:
            async with open_channel(address) as channel:
                return (await failure(Caller(channel).unary(text()))).code()

        config = ServiceConfig(grace_seconds=0.05)
        async with run_server(config, "probe", Probe(unary=unary).open_service()) as running:
            code = group.create_task(call(running.address))
            await started.wait()
        assert cancelled.is_set()

    assert code.result() is grpc.StatusCode.UNAVAILABLE


async def test_a_health_watch_does_not_hold_up_the_end() -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        watching = asyncio.Event()

        async def watch(address: str) -> None:
            async with open_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                with suppress(grpc.aio.AioRpcError):
                    async for _ in stub.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                        watching.set()

        config = ServiceConfig(grace_seconds=3600)
        async with run_server(config, "probe", Probe(unary=echo).open_service()) as running:
            group.create_task(watch(running.address))
            await watching.wait()


async def test_what_the_service_opened_is_closed_after_its_last_handler_also_one_that_aborts() -> None:
    order: list[str] = []

    async def unary(_request: StringValue, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        started.set()
        await running.draining.wait()
        try:
            await context.abort(grpc.StatusCode.ABORTED, "handed back")
        finally:
            await asyncio.sleep(0.1)  # Long after the status is sent: grpc.aio's own stop does not wait for this.
            order.append("handler")
        return text()

    @asynccontextmanager
    async def open_service(_draining: asyncio.Event) -> AsyncIterator[list[Mounted]]:
        yield [Probe(unary=unary).mounted]
        order.append("resources")

    started = asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def call(address: str) -> None:
            async with open_channel(address) as channel:
                await failure(Caller(channel).unary(text()))

        async with run_server(ServiceConfig(), "probe", open_service) as running:
            group.create_task(call(running.address))
            await started.wait()

    assert order == ["handler", "resources"]


async def test_a_service_that_cannot_load_closes_what_it_had_opened() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def open_service(_draining: asyncio.Event) -> AsyncIterator[list[Mounted]]:
        try:
            raise ValueError("no such model")
            yield []
        finally:
            order.append("closed")

    with pytest.raises(ValueError, match="no such model"):
        async with run_server(ServiceConfig(), "probe", open_service):
            pytest.fail("served")

    assert order == ["closed"]


async def test_a_block_that_fails_still_drains() -> None:
    with pytest.raises(ValueError, match="the block"):
        async with probing(Probe(unary=echo)) as probe:
            raise ValueError("the block")

    assert probe.running.draining.is_set()


async def test_a_taken_port_is_refused_by_name() -> None:
    async with probing(Probe(unary=echo)) as probe:
        with pytest.raises(OSError, match=probe.running.address):
            async with probing(Probe(unary=echo), listen=probe.running.address):
                pytest.fail("served")


async def test_a_socket_file_is_refused_while_someone_listens_and_replaced_when_nobody_does(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/probe.sock"
    async with probing(Probe(unary=echo), listen=address):
        with pytest.raises(OSError, match=r"probe\.sock"):
            async with probing(Probe(unary=echo), listen=address):
                pytest.fail("served")

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(address.removeprefix("unix:"))
    async with probing(Probe(unary=echo), listen=address) as probe:
        assert (await probe.caller.unary(text("x"))).value == "x"
    assert not has_files(tmp_path)


async def test_one_service_listens_on_several_addresses(tmp_path: Path) -> None:
    async with probing(Probe(unary=echo), listen=f"127.0.0.1:0,unix:{tmp_path}/probe.sock") as probe:
        assert len(probe.running.addresses) == 2
        for address in probe.running.addresses:
            async with open_channel(address) as channel:
                assert (await Caller(channel).unary(text(address))).value == address


async def test_four_services_live_in_one_process_and_end_one_by_one() -> None:
    async def alive(running: Running) -> bool:
        async with open_channel(running.address) as channel:
            return bool((await Caller(channel).unary(text("x"))).value == "x")

    probe = Probe(unary=echo).open_service()
    config = ServiceConfig(metrics_port=0)
    async with run_server(config, "a", probe) as a, run_server(config, "b", probe) as b:
        async with run_server(config, "c", probe) as c, run_server(config, "d", probe) as d:
            assert all([await alive(each) for each in (a, b, c, d)])
            assert len({each.metrics_address for each in (a, b, c, d)}) == 4
        assert all([await alive(each) for each in (a, b)])


def test_services_run_again_on_another_event_loop() -> None:
    async def once() -> str:
        async with probing(Probe(unary=echo)) as probe:
            value: str = (await probe.caller.unary(text("x"))).value
            return value

    assert [asyncio.run(once()) for _ in range(2)] == ["x", "x"]
