"""The tracer and the meter of one service, and where their data goes."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from prometheus_client import CollectorRegistry, start_http_server

if TYPE_CHECKING:
    from services.chassis.config import ServiceConfig

_SCOPE: Final = "rushes"
_EXPORT_TIMEOUT_SECONDS: Final = 5
_current: ContextVar["Telemetry"] = ContextVar("rushes_telemetry")


class Telemetry:
    """What one service measures with. Close it to flush what is not exported yet."""

    def __init__(
        self, *, service_name: str, spans: TracerProvider, measures: MeterProvider, registry: CollectorRegistry
    ) -> None:
        """Use `configure`."""
        self.service_name = service_name
        self.registry = registry
        self.tracer: trace.Tracer = spans.get_tracer(_SCOPE)
        self.meter: metrics.Meter = measures.get_meter(_SCOPE)
        self._spans = spans
        self._measures = measures

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the telemetry that `tracer()` and `meter()` answer with, for the block and the tasks it starts."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @asynccontextmanager
    async def endpoint(self, host: str, port: int) -> AsyncIterator[str]:
        """Serve Prometheus' text format on `http://host:port/metrics` for the block; yields `host:port` as bound."""
        server, thread = start_http_server(port, addr=host, registry=self.registry)
        try:
            yield f"{host}:{server.server_port}"
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            await asyncio.to_thread(thread.join)

    async def close(self) -> None:
        """Flush and stop the exporters, in a thread because they block."""
        await asyncio.to_thread(self._spans.shutdown)
        await asyncio.to_thread(self._measures.shutdown, _EXPORT_TIMEOUT_SECONDS * 1000)


def configure(service_name: str, config: "ServiceConfig", *, span_exporters: Sequence[SpanExporter] = ()) -> Telemetry:
    """The telemetry of one service: OTLP if the configuration names an endpoint, Prometheus' registry always.

    `span_exporters` get every span as it ends, before the call's task goes on: for tests and the embedded suite.
    """
    resource = Resource.create({"service.name": service_name, "service.namespace": _SCOPE})
    registry = CollectorRegistry()
    spans = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in span_exporters:
        spans.add_span_processor(SimpleSpanProcessor(exporter))
    readers: list[MetricReader] = [PrometheusMetricReader(registry=registry, scope_info_enabled=False)]
    if config.otlp_endpoint is not None:
        # Imported here: they take a tenth of a second that only those who export should pay.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - above
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - above

        endpoint, timeout = config.otlp_endpoint, _EXPORT_TIMEOUT_SECONDS
        spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=timeout)))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint, timeout=timeout)))
    return Telemetry(
        service_name=service_name,
        spans=spans,
        measures=MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False),
        registry=registry,
    )


def tracer() -> trace.Tracer:
    """The tracer of the service that this code runs for; outside of any service OpenTelemetry's own default."""
    telemetry = _current.get(None)
    return telemetry.tracer if telemetry else trace.get_tracer(_SCOPE)


def meter() -> metrics.Meter:
    """The meter of the service that this code runs for; outside of any service OpenTelemetry's own default."""
    telemetry = _current.get(None)
    return telemetry.meter if telemetry else metrics.get_meter(_SCOPE)


def current_trace_id() -> str | None:
    """The id of the trace that this code runs in, 32 hex digits, or None outside of one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
