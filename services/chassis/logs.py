"""JSON logs on stderr, with the trace that they belong to and without what a caller wrote."""

import hashlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from opentelemetry import trace
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import Processor

_DIGESTED: Final = frozenset({"prompt", "negative_prompt", "text"})
_SECRET: Final = frozenset(
    {"authorization", "cookie", "password", "secret", "token", "api_key", "signature", "signed_url"}
)


def prompt_digest(text: str) -> str:
    """`sha256:<16 hex digits>/<length>`: what logs and spans may know of a prompt.

    Equal prompts have equal digests, so a short prompt can be guessed: this hides text from readers of logs, it does
    not anonymise it.
    """
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}/{len(text)}"


def logger(name: str) -> BoundLogger:
    """A structured logger on top of the standard one called `name`.

    Where it goes is the process's choice: `configure_logging` in a service, whatever the host has set up in a test or
    in the embedded suite.
    """
    bound: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=_event_processors(), wrapper_class=BoundLogger
    )
    return bound


def configure_logging(service_name: str, level: str) -> None:
    """Send every log record of this process to stderr, one JSON object a line. Once, from its entry point."""

    def name_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service_name)
        return event

    foreign: list[Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, *_shared_processors()]
    formatter = ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[ProcessorFormatter.remove_processors_meta, name_service, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _event_processors() -> list[Processor]:
    return [
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        *_shared_processors(),
        ProcessorFormatter.wrap_for_formatter,
    ]


def _shared_processors() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        _redact,
        structlog.processors.format_exc_info,
    ]


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key in _DIGESTED and isinstance(value, str):
            event[key] = prompt_digest(value)
        elif key in _SECRET:
            event[key] = "[redacted]"
    return event
