"""The packets of a fragmented MP4 as one file, without a second encode."""

from pathlib import Path

import av
from av.container import OutputContainer

from services.postprocess.captions import MILLISECOND, TRACK_CODECS, Captions
from services.postprocess.mp4 import Container
from services.postprocess.provenance import AIGC_FIELD, Origin


def remux(source: Path, target: Path, container: Container, origin: Origin, captions: Captions | None = None) -> None:
    """Write the packets of `source` to `target`, and a track of `captions`; an MP4 has its `moov` before its `mdat`.

    The file declares its `origin`; in an MP4 the XMP packet is the last box, where it moves no sample.
    """
    muxer, _, _ = container.value
    options = {"movflags": "+faststart+use_metadata_tags"} if container is Container.MP4 else {}
    with av.open(str(source)) as clip, av.open(str(target), "w", format=muxer, options=options) as file:
        video = clip.streams.video[0]
        file.metadata[AIGC_FIELD] = origin.aigc()
        stream = file.add_stream_from_template(video, opaque=True)
        stream.time_base = video.time_base
        if video.codec_context.codec_tag == "hvc1":
            stream.codec_context.codec_tag = "hvc1"
        if captions is not None:
            _write_captions(file, captions, container)
        for packet in clip.demux(video):
            if packet.dts is None:
                continue
            packet.stream = stream
            file.mux(packet)
    if container is Container.MP4:
        with target.open("ab") as finished:
            finished.write(origin.box())


def _write_captions(file: OutputContainer, captions: Captions, container: Container) -> None:
    track = file.add_mux_stream(TRACK_CODECS[container])
    track.time_base = MILLISECOND
    track.metadata["language"] = captions.track_language
    for data, start, length in captions.packets(container):
        packet = av.Packet(data)
        packet.stream, packet.time_base = track, MILLISECOND
        packet.pts = packet.dts = start
        packet.duration = length
        file.mux(packet)
