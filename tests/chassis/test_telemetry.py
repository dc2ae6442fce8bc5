import asyncio
import logging
import socket
import urllib.request
from collections.abc import AsyncIterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from services.chassis import errors, telemetry
from services.chassis.channels import scoped
from tests.chassis.probe import NAME, Probe, echo, probing, text
from tests.chassis.test_errors import failure, raising


def named(spans: tuple[ReadableSpan, ...], name: str, kind: trace.SpanKind) -> ReadableSpan:
    return next(span for span in spans if span.name == f"{NAME}/{name}" and span.kind is kind)


def identity(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


async def test_one_trace_goes_through_every_hop() -> None:
    above, below = InMemorySpanExporter(), InMemorySpanExporter()

    async def work(_request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
        with telemetry.tracer().start_as_current_span("step"):
            await asyncio.sleep(0)
        yield text(telemetry.current_trace_id() or "")

    async with probing(Probe(down=work), span_exporters=[below]) as stage:

        async def relay(request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
            with scoped(stage.caller.down(request)) as call:
                async for message in call:
                    yield message

        async with probing(Probe(down=relay), span_exporters=[above]) as gateway:
            answers = [message.value async for message in gateway.caller.down(text())]

    entry = named(above.get_finished_spans(), "Down", trace.SpanKind.SERVER)
    exit_ = named(above.get_finished_spans(), "Down", trace.SpanKind.CLIENT)
    worked = named(below.get_finished_spans(), "Down", trace.SpanKind.SERVER)
    (step,) = [span for span in below.get_finished_spans() if span.name == "step"]
    parents = [span.parent.span_id if span.parent else None for span in (exit_, worked, step)]
    assert parents == [identity(span).span_id for span in (entry, exit_, worked)]
    assert {identity(span).trace_id for span in (entry, exit_, worked, step)} == {identity(entry).trace_id}
    assert answers == [trace.format_trace_id(identity(entry).trace_id)]
    assert [span.resource.attributes["service.name"] for span in (entry, step)] == ["probe", "probe"]


async def test_a_call_without_a_trace_begins_one_even_if_the_server_was_started_inside_another() -> None:
    exporter = InMemorySpanExporter()
    outside = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with trace.use_span(outside):
        served = probing(Probe(unary=echo), span_exporters=[exporter])
        async with served as probe, grpc.aio.insecure_channel(probe.running.address) as bare:
            begin: Any = bare.unary_unary(f"/{NAME}/Unary")
            await begin(b"")

    span = named(exporter.get_finished_spans(), "Unary", trace.SpanKind.SERVER)
    assert span.parent is None
    assert identity(span).trace_id != 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.NotFound(), trace.StatusCode.UNSET), (KeyError("x"), trace.StatusCode.ERROR)],
    ids=["the caller's fault", "ours"],
)
async def test_a_span_of_a_failed_call_has_its_code_and_says_whose_fault_it_is(
    error: Exception, status: trace.StatusCode
) -> None:
    exporter = InMemorySpanExporter()
    async with probing(raising(error), span_exporters=[exporter]) as probe:
        code = (await failure(probe.caller.unary(text()))).code()

    span = named(exporter.get_finished_spans(), "Unary", trace.SpanKind.SERVER)
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == code.name
    assert span.status.status_code is status


async def test_a_call_that_the_client_cancels_ends_its_spans() -> None:
    exporter = InMemorySpanExporter()
    started = asyncio.Event()

    async def wait(_request: StringValue, _context: Any) -> StringValue:
        started.set()
        await asyncio.Event().wait()
        return text()

    async with probing(Probe(unary=wait), span_exporters=[exporter]) as probe:
        with probe.running.telemetry.current():
            call = probe.caller.unary(text())
        await started.wait()
        call.cancel()

    codes = [(span.kind, (span.attributes or {})["rpc.response.status_code"]) for span in exporter.get_finished_spans()]
    assert sorted(codes, key=str) == [(trace.SpanKind.CLIENT, "CANCELLED"), (trace.SpanKind.SERVER, "CANCELLED")]


async def test_a_stream_that_its_reader_abandons_is_cancelled_below() -> None:
    stopped = asyncio.Event()

    async def endless(_request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text()
                await asyncio.sleep(0)
        finally:
            stopped.set()

    async def first(call: Any) -> StringValue:
        async for message in call:
            return message  # type: ignore[no-any-return] # grpc's calls are not typed here
        raise AssertionError

    async with probing(Probe(down=endless)) as probe:
        with scoped(probe.caller.down(text())) as call:
            await first(call)
        await stopped.wait()


async def test_metrics_count_each_call_by_method_and_code() -> None:
    async with probing(raising(errors.NotFound()), metrics_port=0) as probe:
        await failure(probe.caller.unary(text()))
        url = f"http://{probe.running.metrics_address}/metrics"
        page = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()  # a GET of our own server

    rows = [row for row in page.splitlines() if row.startswith("rpc_server_call_duration_seconds_count")]
    assert len(rows) == 1
    assert f'rpc_method="{NAME}/Unary"' in rows[0]
    assert 'rpc_response_status_code="NOT_FOUND"' in rows[0]
    assert rows[0].endswith(" 1.0")


async def test_health_checks_are_not_counted() -> None:
    async with probing(Probe(unary=echo)) as probe:
        check: Any = probe.caller.channel.unary_unary("/grpc.health.v1.Health/Check")
        await check(b"")
        assert probe.running.telemetry.registry.get_sample_value("rpc_server_call_duration_seconds_count") is None


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self.metrics: list[str] = []

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the method's name in the proto
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
            self.spans += [span.name for scope in scopes for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        measured = [scope for resource in request.resource_metrics for scope in resource.scope_metrics]
        self.metrics += [metric.name for scope in measured for metric in scope.metrics]
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_spans_and_metrics_reach_an_otlp_collector_before_the_service_ends() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with probing(Probe(unary=echo), otlp_endpoint=f"http://127.0.0.1:{port}") as probe:
            await probe.caller.unary(text())
    finally:
        server.stop(None).wait()

    assert f"{NAME}/Unary" in collector.spans
    assert "rpc.server.call.duration" in collector.metrics


async def test_a_collector_that_is_not_there_does_not_keep_a_service_from_ending() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with probing(Probe(unary=echo), otlp_endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}") as probe:
            await probe.caller.unary(text())


async def test_names_of_methods_that_callers_invent_are_no_labels() -> None:
    async with probing(Probe(unary=echo)) as probe:
        await failure(probe.caller.down(text()))
        metrics = generate_latest(probe.running.telemetry.registry).decode()

    assert "Down" not in metrics


def test_no_service_leaves_a_global_provider_behind() -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_a_prompt_is_known_by_digest_and_length_only() -> None:
    assert telemetry.prompt_digest("a red circle") == telemetry.prompt_digest("a red circle")
    assert telemetry.prompt_digest("a red circle") != telemetry.prompt_digest("a red square")
    assert telemetry.prompt_digest("红圆").endswith("/2")


def test_a_prompt_that_is_logged_by_name_is_digested(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        telemetry.logger("probe").info("asked", prompt="a red circle", authorization="Bearer x")

    assert "a red circle" not in str(caplog.records[0].msg)
    assert telemetry.prompt_digest("a red circle") in str(caplog.records[0].msg)
    assert "Bearer" not in str(caplog.records[0].msg)
