"""The files of a generation, written while it is being made."""

from pathlib import Path

from rushes.cli.names import contact_sheet, default_video
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import Report
from rushes.v1.generation_pb2 import GenerationEvent, GenerationSpec
from rushes.v1.postprocess_pb2 import Artifact, ArtifactKind
from rushes.v1.sampling_pb2 import ImageFormat

SUFFIXES = {
    ImageFormat.IMAGE_FORMAT_WEBP: ".webp",
    ImageFormat.IMAGE_FORMAT_JPEG: ".jpg",
    ImageFormat.IMAGE_FORMAT_PNG: ".png",
}


class Recording:
    """Writes fragments, the contact sheet and previews as they come.

    The clip grows as `<name>.mp4.part`, playable as far as it goes; `Client.download` checks it and gives it its name.
    """

    def __init__(
        self, output: Path | None, previews: Path | None, report: Report, *, formats: tuple[str, ...] = ("mp4",)
    ) -> None:
        self.formats = formats
        self._suffix = ".webm" if "webm" in formats else ".mp4"
        if output is not None and output.suffix.lower() != self._suffix and not output.is_dir():
            raise CommandRefused("--output", f"must be a folder or a name that ends in {self._suffix}")
        folder = output if output is not None and output.is_dir() else Path()
        self._folder = folder
        self._report = report
        self._previews = previews
        self.video: Path | None = None if output is None or output.is_dir() else output
        for needed in (self.video.parent if self.video else folder, previews):
            if needed is not None:
                needed.mkdir(parents=True, exist_ok=True)

    def take(self, event: GenerationEvent) -> None:
        """Write what the event carries. Raises OSError."""
        kind = event.WhichOneof("event")
        if kind == "queued":
            self.name(event.queued.generation.spec)
        elif kind in ("rendering", "retaken"):
            # Whatever came before belongs to a clip that is not delivered.
            self.discard()
        elif kind == "fragment" and self.video is not None:
            self._append(event.fragment.offset, event.fragment.data)
        elif kind == "artifact":
            self._keep(event.artifact)
        elif kind == "preview" and self._previews is not None:
            preview = event.preview.preview
            path = self._previews / f"step-{preview.step_index + 1:04d}{SUFFIXES.get(preview.format, '.webp')}"
            path.write_bytes(preview.data)
            self._report.saved("preview", path)

    def name(self, spec: GenerationSpec) -> Path:
        """The clip's name, made from the prompt and the seed where none was given."""
        if self.video is None:
            self.video = default_video(spec, self._folder, self._suffix)
        self.part.unlink(missing_ok=True)
        return self.video

    @property
    def part(self) -> Path:
        """Where the clip grows."""
        if self.video is None:
            raise CommandRefused("--output", "is not known before the generation is")
        return self.video.with_name(self.video.name + ".part")

    def discard(self) -> None:
        """Leave no half a clip behind."""
        if self.video is not None:
            self.part.unlink(missing_ok=True)

    def _append(self, offset: int, data: bytes) -> None:
        with self.part.open("ab") as file:
            # A watch that began later lacks the first fragments; the download fetches them.
            if file.tell() == offset:
                file.write(data)

    def _keep(self, artifact: Artifact) -> None:
        if artifact.kind == ArtifactKind.ARTIFACT_KIND_CONTACT_SHEET and self.video is not None:
            path = contact_sheet(self.video)
            path.write_bytes(artifact.data)
            self._report.saved("contact_sheet", path)
