"""Makes the files that a plan asks for, once the clip is encoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.postprocess.animation import Animation, AnimationFormat
from services.postprocess.captions import Captions
from services.postprocess.claim import Claim
from services.postprocess.hls import Presentation, write_hls
from services.postprocess.outputs import Output, OutputKind
from services.postprocess.plan import RenderPlan
from services.postprocess.provenance import Origin
from services.postprocess.remux import remux
from services.postprocess.signing import SIGNED_TYPES, Signer
from services.postprocess.spool import Spool
from services.postprocess.sprite import SPRITE_NAME, TRACK_NAME, Sprite

_ANIMATIONS = {AnimationFormat.GIF: OutputKind.GIF, AnimationFormat.WEBP: OutputKind.ANIMATED_WEBP}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """What the chain left to make files of: the spooled fragments, and what was taken from the frames."""

    spool: Spool | None
    sprite: Sprite | None
    animation: Animation | None
    origin: Origin


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """What signs the files of a clip, and what it claims of them."""

    signer: Signer
    claim: Claim

    def put_on(self, output: Output) -> None:
        """Sign the file, if it is of a kind that can carry a manifest. Raises `SigningFailed`."""
        if output.content_type in SIGNED_TYPES and output.kind is not OutputKind.HLS:
            self.signer.sign(output.path, output.content_type, self.claim)


def write_files(plan: RenderPlan, gathered: Gathered, codecs: str, folder: Path, seal: Seal | None) -> list[Output]:
    """The files of `plan` in `folder`, signed where there is a `seal`; `codecs` is the clip's codecs string.

    Raises `SigningFailed`.
    """
    outputs = list(_files(plan, gathered, codecs, folder))
    if seal is not None:
        for output in outputs:
            seal.put_on(output)
    return outputs


def _files(plan: RenderPlan, gathered: Gathered, codecs: str, folder: Path) -> Iterator[Output]:
    spool = gathered.spool
    if spool is not None:
        spool.close()
        if plan.video:
            yield _video(plan, spool, gathered.origin, folder)
            if plan.captions is not None:
                yield _captions(plan.captions, folder)
        if plan.hls:
            finish = plan.finish
            form = Presentation(
                width=finish.width,
                height=finish.height,
                fps=plan.target_fps,
                codecs=codecs,
                captions=plan.captions,
            )
            yield from write_hls(spool, form, folder)
    if gathered.sprite is not None:
        yield from _sprite(gathered.sprite, folder)
    if gathered.animation is not None:
        yield from _animations(plan, gathered.animation, folder)


def _video(plan: RenderPlan, spool: Spool, origin: Origin, folder: Path) -> Output:
    _, suffix, content_type = plan.container.value
    path = folder / f"clip{suffix}"
    remux(spool.path, path, plan.container, origin, plan.captions)
    return Output(kind=OutputKind.VIDEO, name=path.name, content_type=content_type, path=path)


def _captions(captions: Captions, folder: Path) -> Output:
    path = folder / "subtitles.vtt"
    path.write_text(captions.webvtt(), encoding="utf-8")
    return Output(kind=OutputKind.SUBTITLES, name=path.name, content_type="text/vtt", path=path)


def _sprite(sprite: Sprite, folder: Path) -> Iterator[Output]:
    picture, track = folder / SPRITE_NAME, folder / TRACK_NAME
    picture.write_bytes(sprite.picture())
    track.write_text(sprite.track(), encoding="utf-8")
    yield Output(kind=OutputKind.SPRITE, name=SPRITE_NAME, content_type="image/jpeg", path=picture)
    yield Output(kind=OutputKind.SPRITE, name=TRACK_NAME, content_type="text/vtt", path=track)


def _animations(plan: RenderPlan, animation: Animation, folder: Path) -> Iterator[Output]:
    for form in sorted(plan.animations, key=lambda one: one.name):
        _, name, content_type = form.value
        path = folder / name
        path.write_bytes(animation.picture(form))
        yield Output(kind=_ANIMATIONS[form], name=name, content_type=content_type, path=path)
