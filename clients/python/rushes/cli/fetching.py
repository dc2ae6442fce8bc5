"""Fetches the files of a finished generation, each to its place."""

from pathlib import PurePosixPath

from rushes.cli.names import file_folder
from rushes.cli.recording import Recording
from rushes.cli.reports import Report
from rushes.client import Client
from rushes.v1.generation_pb2 import Generation
from rushes.v1.postprocess_pb2 import ArtifactKind

KINDS = {
    "hls": ArtifactKind.ARTIFACT_KIND_HLS,
    "gif": ArtifactKind.ARTIFACT_KIND_GIF,
    "webp": ArtifactKind.ARTIFACT_KIND_ANIMATED_WEBP,
    "sprite": ArtifactKind.ARTIFACT_KIND_SPRITE,
}


async def fetch_files(client: Client, ended: Generation, recording: Recording, report: Report) -> None:
    """Save every file that the recording wants; their SHA-256 is checked.

    Beside an HLS folder, which cannot be signed, lies the clip in one file, which can.
    """
    video = recording.video or recording.name(ended.spec)
    # The clip that grew was for watching; the finished file has its index in front.
    recording.discard()
    formats = recording.formats
    if "hls" in formats and KINDS.keys() >= set(formats):
        formats = ("mp4", *formats)
    for wanted in formats:
        if wanted not in KINDS:
            await client.download(ended.id, video)
            report.saved("video", video)
            continue
        made = [file for file in ended.video.outputs if file.kind == KINDS[wanted]]
        folder = file_folder(video, wanted)
        for file in made:
            # A name from the wire is never a path.
            name = PurePosixPath(file.name).name
            target = folder / name if folder is not None else video.with_suffix(PurePosixPath(name).suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            await client.download(ended.id, target, output=file.name)
            report.saved(wanted, target)
