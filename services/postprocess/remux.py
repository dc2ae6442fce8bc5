"""The packets of a fragmented MP4 as one file with its index in front, without a second encode."""

import enum
from pathlib import Path

import av


class Container(enum.Enum):
    """The format of a finished file: name of the muxer, suffix, content type."""

    MP4 = ("mp4", ".mp4", "video/mp4")


def remux(source: Path, target: Path, container: Container) -> None:
    """Write the packets of `source` to `target`; an MP4 has its `moov` before its `mdat`."""
    muxer, _, _ = container.value
    options = {"movflags": "+faststart"} if container is Container.MP4 else {}
    with av.open(str(source)) as clip, av.open(str(target), "w", format=muxer, options=options) as file:
        video = clip.streams.video[0]
        stream = file.add_stream_from_template(video)
        stream.time_base = video.time_base
        for packet in clip.demux(video):
            if packet.dts is None:
                continue
            packet.stream = stream
            file.mux(packet)
