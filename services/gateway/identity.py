"""Ids of generations and the trace context of a call."""

import secrets

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def new_generation_id(now: float) -> str:
    """An id whose order is that of creation: 48 bits of milliseconds and 80 random bits, 32 hexadecimal digits."""
    return f"{int(now * 1000) & (2**48 - 1):012x}{secrets.token_hex(10)}"


def current_traceparent() -> str:
    """The W3C traceparent of the call that is served; a new trace where there is none."""
    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent") or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
