"""The server's half of a hop: the caller's trace goes on, and every call is counted, timed and logged once.

Own code, because the instrumentation package for grpc.aio hands generators through (see `handlers`) and wraps the
context in a proxy; names follow OpenTelemetry's RPC conventions.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import SpanKind, Status, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis.errors.interceptor import UNKNOWN_METHOD
from services.chassis.handlers import Continuation, Found, is_infrastructure, wrap
from services.chassis.incoming import Context
from services.chassis.logs import logger
from services.chassis.telemetry.provider import Telemetry

_PROPAGATOR: Final = TraceContextTextMapPropagator()
# OpenTelemetry's RPC conventions: the codes that are the server's fault; the others are the caller's.
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """A span, a duration and one log line for each call of the suite's own services."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._duration = telemetry.meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            description="Duration of calls by method and status",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._active = telemetry.meter.create_up_down_counter("rpc.server.active_calls", description="Calls in flight")

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Found:
        """The next handler, measured."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler is UNKNOWN_METHOD or is_infrastructure(method):
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        # From an empty context, not the server's own: a call without a traceparent begins a trace.
        parent = _PROPAGATOR.extract(carrier, context=TraceContext())
        return wrap(handler, lambda context, _request: self._measured(context, method.removeprefix("/"), parent))

    @asynccontextmanager
    async def _measured(self, context: Context, method: str, parent: TraceContext) -> AsyncIterator[None]:
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = self._telemetry.tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        self._active.add(1, attributes)
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        with self._telemetry.current(), use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                yield
                code = context.code() or grpc.StatusCode.OK
            except asyncio.CancelledError:
                code = grpc.StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else grpc.StatusCode.CANCELLED
                raise
            except BaseException:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            finally:
                seconds = time.perf_counter() - started
                measured = attributes | {"rpc.response.status_code": code.name}
                self._active.add(-1, attributes)
                self._duration.record(seconds, measured)
                span.set_attribute("rpc.response.status_code", code.name)
                if code in _FAULTS:
                    span.set_status(Status(StatusCode.ERROR, code.name))
                logger(__name__).info("call", method=method, code=code.name, seconds=round(seconds, 6))
                span.end()
