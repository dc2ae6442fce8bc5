"""Jobs and stored events as the messages that callers see, and the other way round."""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from rushes.v1 import generation_pb2, latency_pb2
from services.gateway.store.ending import Story
from services.gateway.store.job import Job, StoredEvent
from services.gateway.store.transitions import State


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp, to the microsecond."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp


def trace_id(traceparent: str) -> str:
    """The trace id of a W3C traceparent."""
    return traceparent.split("-")[1]


def generation(job: Job, *, spans: bool = True) -> generation_pb2.Generation:
    """The job as its caller sees it; place in the queue and ETA are the scheduler's to add."""
    seen = generation_pb2.Generation(
        id=job.id,
        spec=generation_pb2.GenerationSpec.FromString(job.spec),
        state=generation_pb2.GenerationState.ValueType(job.state),
        create_time=timestamp(job.created),
        progress=job.progress,
        attempt=job.attempt,
        last_sequence=job.last_sequence,
        trace_id=trace_id(job.traceparent),
        fingerprint=job.fingerprint,
        cached_from=job.cached_from or "",
    )
    if job.started is not None:
        seen.start_time.CopyFrom(timestamp(job.started))
    if job.ended is not None:
        seen.end_time.CopyFrom(timestamp(job.ended))
    if job.failure is not None:
        seen.failure.ParseFromString(job.failure)
    if job.video is not None:
        seen.video.ParseFromString(job.video)
    if job.terminal:
        if job.latency is not None:
            seen.latency.ParseFromString(job.latency)
        else:
            seen.latency.CopyFrom(unstarted_latency(job))
        if not spans:
            del seen.latency.spans[:]
    return seen


def unstarted_latency(job: Job) -> latency_pb2.LatencyBreakdown:
    """Where the time of a generation went whose last owner left no account: it waited, as far as anybody knows."""
    total = max(0.0, (job.ended or job.created) - job.created)
    return latency_pb2.LatencyBreakdown(total_seconds=total, queue_seconds=total, trace_id=trace_id(job.traceparent))


def queued_event(job: Job, *, position: int, eta_seconds: float | None) -> bytes:
    """The first event of a generation."""
    seen = generation(job)
    seen.queue_position = position
    event = generation_pb2.QueuedEvent(position=position, generation=seen)
    if eta_seconds is not None:
        event.eta_seconds = event.generation.eta_seconds = eta_seconds
    return generation_pb2.GenerationEvent(queued=event).SerializeToString()


def started_event(job: Job) -> bytes:
    """The event of a claim: the first begins the work, a later one goes on with it."""
    if job.attempt == 1:
        begun = generation_pb2.StartedEvent(
            attempt=job.attempt, queue_seconds=max(0.0, (job.started or job.created) - job.created)
        )
        return generation_pb2.GenerationEvent(started=begun).SerializeToString()
    resumed = generation_pb2.ResumedEvent(
        next_step=job.checkpoint_step, attempt=job.attempt, reason=job.requeued or REQUEUED_BEFORE
    )
    return generation_pb2.GenerationEvent(resumed=resumed).SerializeToString()


def terminal_event(job: Job) -> bytes:
    """The last event of a generation."""
    seen = generation(job)
    match job.state:
        case State.SUCCEEDED:
            event = generation_pb2.GenerationEvent(succeeded=generation_pb2.SucceededEvent(generation=seen))
        case State.CANCELLED:
            event = generation_pb2.GenerationEvent(
                cancelled=generation_pb2.CancelledEvent(generation=seen, steps_run=job.steps_run)
            )
        case State.FAILED:
            event = generation_pb2.GenerationEvent(failed=generation_pb2.FailedEvent(generation=seen))
        case _:
            raise ValueError(f"{job.state.name} is not a terminal state")
    return event.SerializeToString()


def lost_failure(_job: Job) -> bytes:
    """Why a generation fails whose every owner was lost."""
    return generation_pb2.Failure(
        reason="LEASES_LOST",
        message="The work was begun several times, and every time its gateway was lost.",
        stage="gateway",
        retryable=True,
    ).SerializeToString()


def stored_event(generation_id: str, stored: StoredEvent) -> generation_pb2.GenerationEvent:
    """An event of the history with its place in it."""
    event = generation_pb2.GenerationEvent.FromString(stored.payload)
    event.sequence = stored.sequence
    event.generation_id = generation_id
    event.time.CopyFrom(timestamp(stored.created))
    return event


REQUEUED_BEFORE = "LEASE_EXPIRED"
"""Why work goes on that an older release put back, which did not write down why."""

TERMINAL_EVENTS = frozenset({"succeeded", "failed", "cancelled"})
"""The fields of GenerationEvent that end a stream."""


def is_terminal(event: generation_pb2.GenerationEvent) -> bool:
    """Whether nothing follows `event`."""
    return event.WhichOneof("event") in TERMINAL_EVENTS


def replayed(payloads: Sequence[bytes]) -> list[bytes]:
    """The events that a cached answer repeats: what a viewer needs to see the clip, and only of its last take."""
    kept: list[bytes] = []
    for payload in payloads:
        kind = generation_pb2.GenerationEvent.FromString(payload).WhichOneof("event")
        if kind == "retaken":
            kept.clear()
        elif kind in REPLAYED_EVENTS:
            kept.append(payload)
    return kept


REPLAYED_EVENTS = frozenset({"rendering", "fragment", "artifact"})
STORY = Story(terminal=terminal_event, replayed=replayed)
