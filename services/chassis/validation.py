"""The constraints that are written in the protos, enforced before a handler sees a message."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import protovalidate
from google.protobuf.message import Message

from rushes.v1 import tensors_pb2
from services.chassis.errors import FieldViolation, InvalidRequest
from services.chassis.handlers import Continuation, Found, is_infrastructure, wrap
from services.chassis.incoming import Context


def validate(message: Message) -> None:
    """Raises `InvalidRequest` with every broken `buf.validate` rule of `message`: field path and rule."""
    violations = [
        FieldViolation(field=_path(violation.proto.field), rule=violation.proto.message or violation.proto.rule_id)
        for violation in protovalidate.collect_violations(message)
    ]
    if violations:
        raise InvalidRequest(violations=violations)


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Validates every request message, also each one of a stream.

    Chunks of a tensor bundle pass: `bundles.BundleReceiver` refuses whatever their rules refuse, and validating one
    would copy its megabyte twice more.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Found:
        """The next handler, behind the check."""
        handler = await continuation(handler_call_details)
        if handler is None or is_infrastructure(handler_call_details.method):
            return handler
        return wrap(handler, _nothing, check=_validate_unless_chunk)


def _validate_unless_chunk(message: Message) -> None:
    if isinstance(message, tensors_pb2.BundleChunk):
        return
    fields = message.ListFields()
    if len(fields) == 1 and isinstance(fields[0][1], tensors_pb2.BundleChunk):
        return
    validate(message)


@asynccontextmanager
async def _nothing(_context: Context, _request: object) -> AsyncIterator[None]:
    yield


def _path(path: protovalidate.FieldPathPb | None) -> str:
    """`settings.size.width`, `prompts[2]`, `labels["tier"]`; empty for a rule of the message as a whole."""
    text = ""
    for element in path.elements if path else ():
        text += f".{element.field_name}" if text else element.field_name
        if element.subscript is not None:
            text += f"[{json.dumps(element.subscript.value)}]"
    return text
