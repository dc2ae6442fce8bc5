"""Makes the files that a plan asks for, once the clip is encoded."""

from collections.abc import Iterator
from pathlib import Path

from services.postprocess.outputs import Output, OutputKind
from services.postprocess.plan import RenderPlan
from services.postprocess.remux import remux
from services.postprocess.spool import Spool
from services.postprocess.sprite import SPRITE_NAME, TRACK_NAME, Sprite


def made(plan: RenderPlan, spool: Spool | None, sprite: Sprite | None, folder: Path) -> list[Output]:
    """The files of `plan` in `folder`, made of the spooled fragments and of what was taken from the frames."""
    if spool is not None:
        spool.close()
    return [
        *(_video(plan, spool, folder) if spool is not None else ()),
        *(_sprite(sprite, folder) if sprite is not None else ()),
    ]


def _video(plan: RenderPlan, spool: Spool, folder: Path) -> Iterator[Output]:
    if plan.container is None:
        return
    _, suffix, content_type = plan.container.value
    path = folder / f"clip{suffix}"
    remux(spool.path, path, plan.container)
    yield Output(kind=OutputKind.VIDEO, name=path.name, content_type=content_type, path=path)


def _sprite(sprite: Sprite, folder: Path) -> Iterator[Output]:
    picture, track = folder / SPRITE_NAME, folder / TRACK_NAME
    picture.write_bytes(sprite.picture())
    track.write_text(sprite.track(), encoding="utf-8")
    yield Output(kind=OutputKind.SPRITE, name=SPRITE_NAME, content_type="image/jpeg", path=picture)
    yield Output(kind=OutputKind.SPRITE, name=TRACK_NAME, content_type="text/vtt", path=track)
