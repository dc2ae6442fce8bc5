"""Logs, traces and metrics of a service. Each service of a process has its own; there is no global provider."""

from services.chassis.logs import configure_logging, logger, prompt_digest
from services.chassis.telemetry.client import TracedChannel
from services.chassis.telemetry.provider import Telemetry, configure, current_trace_id, meter, tracer
from services.chassis.telemetry.server import TelemetryInterceptor

__all__ = [
    "Telemetry",
    "TelemetryInterceptor",
    "TracedChannel",
    "configure",
    "configure_logging",
    "current_trace_id",
    "logger",
    "meter",
    "prompt_digest",
    "tracer",
]
