"""Channels from one service to another. One per target for the life of the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc

from services.chassis.telemetry import TracedChannel
from services.chassis.tls import TlsFiles

CallT = TypeVar("CallT", bound="grpc.aio.UnaryStreamCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any]")
MAX_MESSAGE_BYTES: Final = 4 * 2**20
"""gRPC's own default, stated on both ends: whatever may be larger travels in chunks."""


def open_channel(
    address: str, *, tls: TlsFiles | None = None, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> TracedChannel:
    """A channel to `address` (`host:port`, `unix:/path.sock`, `dns:///name:port`); nothing is connected yet.

    Use it as `async with`, or close it. A name with several addresses is balanced round robin; a broken connection is
    noticed by keepalive within a minute, also below a quiet stream. Calls have no deadline of their own: pass
    `timeout=context.time_remaining()`.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 40_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.lb_policy_name", "round_robin"),
        # Otherwise a proxy of the environment is asked for the way to a neighbouring service.
        ("grpc.enable_http_proxy", 0),
    ]
    if tls is None:
        return TracedChannel(grpc.aio.insecure_channel(address, options))
    return TracedChannel(grpc.aio.secure_channel(address, tls.channel_credentials(), options))


@contextmanager
def scoped(call: CallT) -> Iterator[CallT]:
    """`call`, cancelled at the end of the block unless it is done.

    For every stream that is read: since grpcio 1.83 a call that its reader abandons, by an exception between two reads
    for instance, is never collected and so never cancelled (grpc#43462); the stage below would work on for nobody.
    """
    try:
        yield call
    finally:
        call.cancel()
