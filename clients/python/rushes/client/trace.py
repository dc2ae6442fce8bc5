"""The root of a trace: a W3C trace context that the client draws and every hop carries on."""

import re
import secrets
from dataclasses import dataclass

TRACEPARENT_KEY = "traceparent"
_TRACEPARENT = re.compile(r"^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$")


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceContext:
    """A trace id of 32 hexadecimal digits and the span id, of 16, that calls made under it have as their parent.

    Source: W3C Trace Context, level 1.
    """

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> "TraceContext":
        """Begin a trace."""
        return cls(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))

    @classmethod
    def parse(cls, traceparent: str) -> "TraceContext":
        """Go on with the trace of a `traceparent` header. Raises ValueError if it is malformed."""
        match = _TRACEPARENT.match(traceparent)
        if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
            raise ValueError("traceparent: must be 00-<32 hexadecimal digits>-<16>-<2>, ids not zero")
        return cls(trace_id=match[1], span_id=match[2])

    def header(self) -> tuple[str, str]:
        """The metadata entry of a call."""
        return TRACEPARENT_KEY, f"00-{self.trace_id}-{self.span_id}-01"
