"""One JSON object a line on stdout, and nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from rushes.client.errors import RushesError
from rushes.v1.generation_pb2 import Generation, GenerationEvent

CARRIERS = frozenset({"fragment", "artifact", "preview"})
"""Events that carry bytes."""


def print_json(kind: str, **facts: object) -> None:
    """One line; `kind` says which facts it has."""
    sys.stdout.write(json.dumps({"kind": kind, **facts}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def as_dict(message: Message) -> dict[str, Any]:
    """The message in protobuf's own JSON form, with the names of the protos. 64-bit integers are strings there."""
    return MessageToDict(message, preserving_proto_field_name=True)


class JsonReport:
    """Each event as it is, its pictures and bytes left out: the files hold them."""

    def loading(self, what: str, seconds: float | None) -> None:
        """See `Report`."""
        if seconds is not None:
            print_json("loaded", what=what, seconds=round(seconds, 3))

    def notice(self, text: str) -> None:
        """See `Report`."""
        print_json("notice", text=text)

    def event(self, event: GenerationEvent) -> None:
        """See `Report`."""
        kind = event.WhichOneof("event") or ""
        if kind in CARRIERS:
            slim = GenerationEvent()
            slim.CopyFrom(event)
            body = slim.preview.preview if kind == "preview" else getattr(slim, kind)
            size = len(body.data)
            body.ClearField("data")
            print_json(kind, **as_dict(slim), data_bytes=size)
        else:
            print_json(kind, **as_dict(event))

    def reconnecting(self, failure: RushesError) -> None:
        """See `Report`."""
        print_json("reconnecting", reason=failure.reason, message=str(failure))

    def saved(self, kind: str, path: Path) -> None:
        """See `Report`."""
        print_json("saved", what=kind, path=str(path))

    def finished(self, generation: Generation) -> None:
        """See `Report`. The terminal event has said it all."""
