"""The caller's half of a hop: a channel whose calls carry the current trace and are spans of it.

A channel around a channel and not a client interceptor: grpc.aio puts an intercepted call behind a task and a queue of
its own, which costs something for each message and blurs cancellation. Here the caller holds grpc.aio's own call.
"""

from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis.telemetry.provider import tracer

_Start: TypeAlias = Callable[..., Any]
_Pairs: TypeAlias = grpc.aio.Metadata | Sequence[tuple[str, str | bytes]]


class TracedChannel(grpc.aio.Channel):
    """`channel`, each call of it a client span whose `traceparent` travels in the metadata."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The method's multicallable, traced."""
        return _traced(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The method's multicallable, traced."""
        return _traced(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The method's multicallable, traced."""
        return _traced(method, self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The method's multicallable, traced."""
        return _traced(method, self._channel.stream_stream(method, *args, **kwargs))

    async def __aenter__(self) -> Self:
        """Open until the end of the block."""
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Close; calls that are not done are cancelled."""
        await self._channel.__aexit__(exc_type, exc_val, exc_tb)

    async def close(self, grace: float | None = None) -> None:
        """Close; calls that are not done after `grace` seconds are cancelled."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The channel's connectivity."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connectivity is another."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until connected."""
        await self._channel.channel_ready()


def _traced(method: str, start: _Start) -> _Start:
    name = method.removeprefix("/")

    def call(request: Any = None, *, metadata: _Pairs | None = None, **kwargs: Any) -> Any:
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = tracer().start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
        started = start(request, metadata=(*(metadata or ()), *carrier.items()), **kwargs)
        started.add_done_callback(lambda done: _end(span, done))
        return started

    return call


def _end(span: Span, call: grpc.aio.Call) -> None:
    code = _result(call.code())
    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


def _result(coroutine: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode:
    """What `coroutine` returns; the code of a call that is done is there at once, only behind an async interface."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    coroutine.close()
    return grpc.StatusCode.UNKNOWN
