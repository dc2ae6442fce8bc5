"""An OTLP collector: a real gRPC server that keeps the spans it is sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(kw_only=True, slots=True)
class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """Spans by the name of the service that sent them."""

    address: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)

    async def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the name in the proto
        """Keep the spans."""
        for resource in request.resource_spans:
            names = [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans.extend((names[0], span) for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def services_of(self, trace_id: str) -> set[str]:
        """The services that took part in a trace."""
        return {name for name, span in self.spans if span.trace_id.hex() == trace_id}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector for the block."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)
