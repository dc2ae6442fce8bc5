"""A tiny real service whose behaviour each test gives: the four arities over text, and uploads of bundle parts."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.trace.export import SpanExporter

from rushes.v1 import tensors_pb2
from services.chassis.channels import open_channel
from services.chassis.config import ServiceConfig
from services.chassis.lifecycle import Mounted, OpenService, Running, run_server

NAME = "rushes.test.v1.ProbeService"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the methods do; one that is None is not served."""

    unary: Callable[..., Any] | None = None
    down: Callable[..., Any] | None = None
    up: Callable[..., Any] | None = None
    both: Callable[..., Any] | None = None
    upload: Callable[..., Any] | None = None
    announce: Callable[..., Any] | None = None

    def add_to_server(self, server: grpc.aio.Server) -> None:
        text: dict[str, Any] = {
            "request_deserializer": StringValue.FromString,
            "response_serializer": StringValue.SerializeToString,
        }
        chunk = text | {"request_deserializer": tensors_pb2.BundleChunk.FromString}
        header = text | {"request_deserializer": tensors_pb2.BundleHeader.FromString}
        made = {
            "Unary": self.unary and grpc.unary_unary_rpc_method_handler(self.unary, **text),
            "Down": self.down and grpc.unary_stream_rpc_method_handler(self.down, **text),
            "Up": self.up and grpc.stream_unary_rpc_method_handler(self.up, **text),
            "Both": self.both and grpc.stream_stream_rpc_method_handler(self.both, **text),
            "Upload": self.upload and grpc.stream_unary_rpc_method_handler(self.upload, **chunk),
            "Announce": self.announce and grpc.stream_unary_rpc_method_handler(self.announce, **header),
        }
        handlers = {name: handler for name, handler in made.items() if handler is not None}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    @property
    def mounted(self) -> Mounted:
        return Mounted(add_to_server=lambda probe, server: probe.add_to_server(server), servicer=self, full_name=NAME)

    def open_service(self) -> OpenService:
        @asynccontextmanager
        async def opened(_draining: Any) -> AsyncIterator[list[Mounted]]:
            yield [self.mounted]

        return opened


class Caller:
    """The methods, from outside."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        def options(serializer: Any = StringValue.SerializeToString) -> dict[str, Any]:
            return {"request_serializer": serializer, "response_deserializer": StringValue.FromString}

        self.channel = channel
        self.unary = channel.unary_unary(f"/{NAME}/Unary", **options())
        self.down = channel.unary_stream(f"/{NAME}/Down", **options())
        self.up = channel.stream_unary(f"/{NAME}/Up", **options())
        self.both = channel.stream_stream(f"/{NAME}/Both", **options())
        self.upload = channel.stream_unary(f"/{NAME}/Upload", **options(tensors_pb2.BundleChunk.SerializeToString))
        self.announce = channel.stream_unary(f"/{NAME}/Announce", **options(tensors_pb2.BundleHeader.SerializeToString))


@dataclass(frozen=True, kw_only=True, slots=True)
class Probing:
    """A running probe and a caller of it."""

    running: Running
    caller: Caller


def probing(
    probe: Probe, *, span_exporters: Sequence[SpanExporter] = (), **settings: Any
) -> AbstractAsyncContextManager[Probing]:
    """The probe served with `settings`, and a channel to it."""

    @asynccontextmanager
    async def served() -> AsyncIterator[Probing]:
        config = ServiceConfig(**settings)
        async with (
            run_server(config, "probe", probe.open_service(), span_exporters=span_exporters) as running,
            open_channel(running.address) as channel,
        ):
            yield Probing(running=running, caller=Caller(channel))

    return served()


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


async def echo(request: StringValue, _context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
    return request
