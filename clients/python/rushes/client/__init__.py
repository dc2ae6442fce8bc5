"""Python client of Rushes: `Client` for asyncio, `SyncClient` without. Needs grpcio and protobuf, nothing else."""

from rushes.client.channel import Tls
from rushes.client.client import Client, succeeded
from rushes.client.download import DownloadedVideo
from rushes.client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Exhausted,
    FailedPrecondition,
    FieldViolation,
    GenerationCancelled,
    GenerationFailed,
    Internal,
    InvalidRequest,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RushesError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from rushes.client.events import generation_at_end
from rushes.client.finishing import finish_plan, video_settings
from rushes.client.frames import ClipFrame
from rushes.client.gate import GateRule, inspection_policy
from rushes.client.retry import RetryPolicy
from rushes.client.settings import generation_spec
from rushes.client.sync import Stream, SyncClient
from rushes.client.trace import TraceContext

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Client",
    "ClipFrame",
    "DataLoss",
    "DeadlineExceeded",
    "DownloadedVideo",
    "Exhausted",
    "FailedPrecondition",
    "FieldViolation",
    "GateRule",
    "GenerationCancelled",
    "GenerationFailed",
    "Internal",
    "InvalidRequest",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RetryPolicy",
    "RushesError",
    "Stream",
    "SyncClient",
    "Tls",
    "TraceContext",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "finish_plan",
    "generation_at_end",
    "generation_spec",
    "inspection_policy",
    "succeeded",
    "video_settings",
]
