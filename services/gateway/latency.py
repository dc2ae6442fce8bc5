"""Where the time of a generation went: measured intervals, and their disjoint parts that add up to the whole."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rushes.v1 import latency_pb2


class Part(enum.IntEnum):
    """A part of the breakdown. Where two overlap, the time counts for the smaller: the one earlier in the chain.

    WITHIN is time inside a stage that none of its spans explains: it is left over, and not transfer.
    """

    QUEUE = 0
    ENCODE = 1
    HIGH_NOISE = 2
    LOW_NOISE = 3
    PREVIEW = 4
    HAND_OFF = 5
    DECODE = 6
    VIDEO_ENCODE = 7
    WITHIN = 8
    TRANSFER = 9


FIELDS: Mapping[Part, str] = {
    Part.QUEUE: "queue_seconds",
    Part.ENCODE: "encode_seconds",
    Part.HIGH_NOISE: "high_noise_seconds",
    Part.LOW_NOISE: "low_noise_seconds",
    Part.PREVIEW: "preview_seconds",
    Part.HAND_OFF: "hand_off_seconds",
    Part.DECODE: "decode_seconds",
    Part.VIDEO_ENCODE: "video_encode_seconds",
    Part.TRANSFER: "transfer_seconds",
}

PART_ATTRIBUTE = "part"
"""The attribute of a span that names its part."""


@dataclass(slots=True)
class Timeline:
    """The measured intervals of one generation, in seconds since it was created."""

    spans: list[latency_pb2.Span] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When the last interval ended; 0 if there is none."""
        return max((_end(span) for span in self.spans), default=0.0)

    def record(
        self,
        name: str,
        *,
        stage: str,
        start: float,
        end: float,
        part: Part | None = None,
        parent: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Note that `name` went on from `start` to `end`."""
        facts = dict(attributes or {})
        if part is not None:
            facts[PART_ATTRIBUTE] = part.name.lower()
        self.spans.append(
            latency_pb2.Span(
                name=name,
                stage=stage,
                start_seconds=start,
                duration_seconds=max(0.0, end - start),
                parent=parent,
                attributes=facts,
            )
        )

    def record_call(
        self, name: str, *, stage: str, start: float, end: float, inside: Iterable[latency_pb2.Span]
    ) -> None:
        """Note a call of a stage, and the spans that the stage measured inside it.

        The stage counts from the moment that it received the call, which lies between `start` and `end`; its clock is
        placed at the start. What no span of the stage covers was spent on the way.
        """
        self.record(name, stage="gateway", start=start, end=end, part=Part.TRANSFER)
        for span in inside:
            placed = latency_pb2.Span()
            placed.CopyFrom(span)
            placed.stage = span.stage or stage
            placed.start_seconds = start + span.start_seconds
            placed.parent = span.parent or name
            part = part_of(span)
            if part is not None:
                placed.attributes[PART_ATTRIBUTE] = part.name.lower()
            self.spans.append(placed)

    def breakdown(self, *, total: float, trace_id: str) -> latency_pb2.LatencyBreakdown:
        """The parts of `total` seconds since the creation; they are disjoint and add up to it."""
        seconds = disjoint(
            [
                (Part[span.attributes[PART_ATTRIBUTE].upper()], span.start_seconds, _end(span))
                for span in self.spans
                if PART_ATTRIBUTE in span.attributes
            ],
            total=total,
        )
        named = {name: seconds.get(part, 0.0) for part, name in FIELDS.items()}
        return latency_pb2.LatencyBreakdown(
            total_seconds=total,
            other_seconds=max(0.0, total - sum(named.values())),
            trace_id=trace_id,
            spans=sorted(self.spans, key=lambda span: span.start_seconds),
            **named,
        )


PARTS: Mapping[str, Part] = {
    "encode": Part.ENCODE,
    "denoise": Part.WITHIN,
    "denoise.step": Part.HIGH_NOISE,
    "denoise.preview": Part.PREVIEW,
    "denoise.checkpoint": Part.HAND_OFF,
    "denoise.pack": Part.HAND_OFF,
    "denoise.receive": Part.TRANSFER,
    "denoise.send": Part.TRANSFER,
    "render": Part.WITHIN,
    "render.decode": Part.DECODE,
    "render.interpolate": Part.VIDEO_ENCODE,
    "render.upscale": Part.VIDEO_ENCODE,
    "render.inspect": Part.VIDEO_ENCODE,
    "render.loop": Part.VIDEO_ENCODE,
    "render.finish": Part.VIDEO_ENCODE,
    "render.mark": Part.VIDEO_ENCODE,
    "render.still": Part.VIDEO_ENCODE,
    "render.encode": Part.VIDEO_ENCODE,
    "render.deliver": Part.VIDEO_ENCODE,
    "render.receive": Part.TRANSFER,
    "render.send": Part.TRANSFER,
}
"""The part of every span that the stages measure; a name that is not here counts as its longest known beginning."""


def part_of(span: latency_pb2.Span) -> Part | None:
    """The part that a stage's span counts for; None for one that no stage is known to measure."""
    words = span.name.split(".")
    for length in range(len(words), 0, -1):
        part = PARTS.get(".".join(words[:length]))
        if part is not None:
            low = part is Part.HIGH_NOISE and "low" in span.attributes.get("expert", "").lower()
            return Part.LOW_NOISE if low else part
    return None


def disjoint(intervals: Iterable[tuple[Part, float, float]], *, total: float) -> dict[Part, float]:
    """Seconds of each part within 0 to `total`, every moment counted once, for the smallest part that covers it."""
    edges: list[tuple[float, int, Part]] = []
    for part, start, end in intervals:
        clipped_start, clipped_end = max(0.0, start), min(total, end)
        if clipped_end > clipped_start:
            edges += [(clipped_start, 1, part), (clipped_end, -1, part)]
    edges.sort(key=lambda edge: edge[0])
    open_parts = dict.fromkeys(Part, 0)
    seconds = dict.fromkeys(Part, 0.0)
    before = 0.0
    for at, change, part in edges:
        covering = next((one for one in Part if open_parts[one]), None)
        if covering is not None:
            seconds[covering] += at - before
        open_parts[part] += change
        before = at
    return seconds


def _end(span: latency_pb2.Span) -> float:
    return span.start_seconds + span.duration_seconds
