"""Facts of a generation in words."""

from rushes.v1.finishing_pb2 import Finding, FindingAction, InspectionCheck
from rushes.v1.generation_pb2 import EncodedEvent, Generation, GenerationState, QueuedEvent, RetakenEvent, Video
from rushes.v1.sampling_pb2 import Expert

EXPERTS = {Expert.EXPERT_HIGH_NOISE: "high noise", Expert.EXPERT_LOW_NOISE: "low noise"}


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def seconds(value: float) -> str:
    """A length of time: milliseconds below a second, minutes above two of them."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def state(generation: Generation) -> str:
    """The state in one lower-case word."""
    return GenerationState.Name(generation.state).removeprefix("GENERATION_STATE_").lower()


def video(clip: Video) -> str:
    """The clip's facts in one line."""
    length = f"{clip.num_frames} frames, {clip.fps} fps"
    return f"{clip.width}×{clip.height}, {length}, {size(clip.size_bytes)}"


def queued(event: QueuedEvent) -> str:
    """Where it stands in the queue."""
    wait = f", about {seconds(event.eta_seconds)} to the end" if event.HasField("eta_seconds") else ""
    return f"position {event.position}{wait}" if event.position > 1 else f"next{wait}"


def encoded(event: EncodedEvent) -> str:
    """How the text was taken."""
    if event.truncated:
        return f"the first {event.tokens} of {event.total_tokens} tokens: the end of the prompt was cut off"
    return f"{event.tokens} tokens, {'cached' if event.cached else seconds(event.seconds)}"


def finding(found: Finding) -> str:
    """What the quality gate found, when, and by how much."""
    check = InspectionCheck.Name(found.check).removeprefix("INSPECTION_CHECK_").lower()
    action = FindingAction.Name(found.action).removeprefix("FINDING_ACTION_").lower()
    when = f"{found.start_seconds:.2f} to {found.end_seconds:.2f} s"
    return f"{check}, {when}, score {found.score:.3g} above {found.threshold:.3g} ({action})"


def retaken(event: RetakenEvent) -> str:
    """Why another take begins, and with which seed."""
    return f"take {event.take} with seed {event.seed}: {finding(event.finding)}"


def made_with(generation: Generation) -> str:
    """The seed that the clip was made with, and how many takes that took."""
    clip = generation.video
    takes = f", take {clip.takes}" if clip.takes > 1 else ""
    return f"seed {clip.seed if clip.HasField('seed') else generation.spec.seed}{takes}"
