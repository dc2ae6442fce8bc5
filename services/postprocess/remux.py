"""The packets of a fragmented MP4 as one file, without a second encode."""

from pathlib import Path

import av

from services.postprocess.mp4 import Container


def remux(source: Path, target: Path, container: Container) -> None:
    """Write the packets of `source` to `target`; an MP4 has its `moov` before its `mdat`."""
    muxer, _, _ = container.value
    options = {"movflags": "+faststart"} if container is Container.MP4 else {}
    with av.open(str(source)) as clip, av.open(str(target), "w", format=muxer, options=options) as file:
        video = clip.streams.video[0]
        stream = file.add_stream_from_template(video, opaque=True)
        stream.time_base = video.time_base
        if video.codec_context.codec_tag == "hvc1":
            stream.codec_context.codec_tag = "hvc1"
        for packet in clip.demux(video):
            if packet.dts is None:
                continue
            packet.stream = stream
            file.mux(packet)
