"""The clip as it grows, and which of its pieces are already in the history. No I/O."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from rushes.v1 import generation_pb2, postprocess_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    index: int
    offset: int
    digest: bytes


def _part(fragment: postprocess_pb2.Fragment) -> _Part:
    return _Part(index=fragment.index, offset=fragment.offset, digest=hashlib.sha256(fragment.data).digest())


class Clip:
    """Puts fragments together, and answers each message of the renderer with the events that are new to the history.

    A renderer that begins again, after a loss, gives the same bytes: viewers who have them get none twice. Should it
    give others, the history says `rendering` again, and the clip begins anew; so does that of another take.
    """

    def __init__(self, past: Iterable[generation_pb2.GenerationEvent] = ()) -> None:
        self.data = bytearray()
        self._accepted: postprocess_pb2.RenderAccepted | None = None
        self._told = False
        self._parts: list[_Part] = []
        self._fragments: list[postprocess_pb2.Fragment] = []
        self._frames = 0
        self._stills: dict[int, bytes] = {}
        for event in past:
            match event.WhichOneof("event"):
                case "rendering":
                    self._told, self._parts, self._frames = True, [], 0
                case "retaken":
                    self._told, self._parts, self._frames, self._stills = False, [], 0, {}
                case "fragment":
                    self._parts.append(_part(event.fragment))
                case "rendered":
                    self._frames = event.rendered.frames_decoded
                case "artifact":
                    self._stills[event.artifact.kind] = event.artifact.data

    @property
    def form(self) -> postprocess_pb2.RenderAccepted:
        """Size, rate and type of the clip, as the renderer accepted it."""
        return self._accepted or postprocess_pb2.RenderAccepted()

    def accepted(self, message: postprocess_pb2.RenderAccepted) -> list[generation_pb2.GenerationEvent]:
        """A renderer begins, for the first time or again."""
        self._accepted = message
        self._fragments.clear()
        self.data.clear()
        if self._told:
            return []
        self._told = True
        return [generation_pb2.GenerationEvent(rendering=message)]

    def fragment(self, message: postprocess_pb2.Fragment) -> list[generation_pb2.GenerationEvent]:
        """The next piece of the clip."""
        self.data += message.data
        self._fragments.append(message)
        place = len(self._fragments) - 1
        if place < len(self._parts):
            if self._parts[place] == _part(message):
                return []
            self._parts = [_part(fragment) for fragment in self._fragments]
            self._frames = 0
            again = generation_pb2.GenerationEvent(rendering=self._accepted)
            return [again, *(generation_pb2.GenerationEvent(fragment=fragment) for fragment in self._fragments)]
        self._parts.append(_part(message))
        return [generation_pb2.GenerationEvent(fragment=message)]

    def progress(self, message: postprocess_pb2.RenderProgress) -> list[generation_pb2.GenerationEvent]:
        """More frames are decoded."""
        if message.frames_decoded <= self._frames:
            return []
        self._frames = message.frames_decoded
        return [generation_pb2.GenerationEvent(rendered=message)]

    def artifact(self, message: postprocess_pb2.Artifact) -> list[generation_pb2.GenerationEvent]:
        """A still is made."""
        if self._stills.get(message.kind) == message.data:
            return []
        self._stills[message.kind] = message.data
        return [generation_pb2.GenerationEvent(artifact=message)]
