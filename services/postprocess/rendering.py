"""One rendering: the chain that a plan asks for, run over one clip's latents."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from services.model.device import DeviceThread
from services.postprocess.animation import Animation
from services.postprocess.chain import Chain, StageFailed, Work
from services.postprocess.claim import Claim
from services.postprocess.decode import WanDecoder, decode_frames
from services.postprocess.delivery import Gathered, Seal, write_files
from services.postprocess.finish import Finisher
from services.postprocess.fragments import Fragment
from services.postprocess.frames import Stage
from services.postprocess.inspection import Finding, Inspector, QualityRefused
from services.postprocess.interpolate import Interpolator
from services.postprocess.loop import Looper
from services.postprocess.mark import Marker
from services.postprocess.mp4 import Mp4Encoder
from services.postprocess.outputs import OutputPart, parts
from services.postprocess.plan import RenderPlan
from services.postprocess.provenance import RUSHES, Maker, Origin
from services.postprocess.scaling import OPENCV, Scaler
from services.postprocess.signing import Signer
from services.postprocess.spool import Spool
from services.postprocess.sprite import Sprite
from services.postprocess.stills import Still, StillTaker
from services.postprocess.upscale import PLAIN, Upscalers


@dataclass(frozen=True, kw_only=True, slots=True)
class Poster:
    """The finished poster."""

    still: Still


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactSheet:
    """The finished contact sheet."""

    still: Still


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The end of a rendering: what the fragments add up to, and every piece of work that was measured."""

    num_frames: int
    size_bytes: int
    sha256: str
    work: tuple[Work, ...]
    findings: tuple[Finding, ...]


Event: TypeAlias = Work | Fragment | Poster | ContactSheet | OutputPart | Finished


class Rendering:
    """The stages that `plan` asks for, ready to run once.

    The quality gate looks before the finish: fades and bars are meant, and would be found black. Raises `GlyphMissing`
    for a text that no font can set.
    """

    def __init__(
        self,
        plan: RenderPlan,
        decoder: WanDecoder,
        *,
        encoder_threads: int,
        upscalers: Upscalers = PLAIN,
        scaler: Scaler = OPENCV,
        maker: Maker = RUSHES,
        signer: Signer | None = None,
    ) -> None:
        self.plan = plan
        self._maker = maker
        self._signer = signer
        self._decoder = decoder
        finish, fps, total = plan.finish, plan.target_fps, plan.finished_frames
        self._inspector = Inspector(fps=fps, rules=plan.rules, scale=plan.upscale)
        self._sprite = Sprite(total=total, fps=fps) if plan.sprite else None
        self._animation = Animation(total=total, fps=fps) if plan.animations else None
        self._stills = StillTaker(
            total=total,
            poster=plan.poster,
            contact_sheet=plan.contact_sheet,
            takers=[taker for taker in (self._sprite, self._animation) if taker is not None],
        )
        self._encoder = Mp4Encoder(
            width=finish.width, height=finish.height, fps=fps, encoding=plan.encoding, threads=encoder_threads
        )
        self.stages: list[Stage[Any]] = [
            *([Interpolator(source_fps=plan.fps, target_fps=fps)] if fps != plan.fps else []),
            *([upscalers.stage(plan.upscaler, plan.upscale, scaler)] if plan.upscale > 1 else []),
            self._inspector,
            *([Looper(total=plan.interpolated_frames, overlap=plan.loop_frames)] if plan.loop_frames else []),
            *([Finisher(finish, total=total, fps=fps, scaler=scaler)] if finish.changes(*plan.upscaled_size) else []),
            *([Marker(plan.mark_id)] if plan.mark_id is not None else []),
            self._stills,
            self._encoder,
        ]
        self.content_type = self._encoder.content_type

    async def events(self, device: DeviceThread, latents: torch.Tensor) -> AsyncGenerator[Event, None]:
        """Render normalised `latents` [C, T, h, w]: a `Work` for each chunk, fragments, stills, files, `Finished`.

        Raises `StageFailed` where a stage breaks, `QualityRefused` as soon as it is certain that a rule refuses the
        clip, and `SigningFailed`. Closing it early stops within one chunk.
        """
        with tempfile.TemporaryDirectory(prefix="rushes-render-") as folder:
            try:
                async with aclosing(self._events(device, latents, Path(folder))) as events:
                    async for event in events:
                        yield event
            except StageFailed as failed:
                if isinstance(failed.__cause__, QualityRefused):
                    raise failed.__cause__ from None
                raise

    async def _events(self, device: DeviceThread, latents: torch.Tensor, folder: Path) -> AsyncGenerator[Event, None]:
        chain = Chain(device, decode_frames(self._decoder, latents), self.stages)
        origin = Origin(producer=self._maker.producer, clip=_number(latents))
        digest, size, frames = hashlib.sha256(), 0, 0
        spool = Spool(folder) if self.plan.needs_spool else None
        async with AsyncExitStack() as opened:
            if spool is not None:
                opened.callback(spool.close)
            items = await opened.enter_async_context(aclosing(chain.items()))
            async for item in items:
                if isinstance(item, Fragment):
                    if item.index == 0:
                        item = replace(item, data=item.data + origin.box())  # noqa: PLW2901 - the piece as it leaves
                    digest.update(item.data)
                    size += len(item.data)
                    frames += item.frame_count
                    if spool is not None:
                        spool.append(item)
                yield item
        if self._stills.poster:
            yield Poster(still=self._stills.poster)
        if self._stills.contact_sheet:
            yield ContactSheet(still=self._stills.contact_sheet)
        begun = time.monotonic()
        gathered = Gathered(spool=spool, sprite=self._sprite, animation=self._animation, origin=origin)
        codecs, seal = self._encoder.codecs, self._seal(origin)
        outputs = await asyncio.to_thread(write_files, self.plan, gathered, codecs, folder, seal)
        for output in outputs:
            for part in parts(output):
                yield part
        delivering = Work(stage="deliver", start=begun, duration=time.monotonic() - begun, frames=frames)
        yield Finished(
            num_frames=frames,
            size_bytes=size,
            sha256=digest.hexdigest(),
            work=(*chain.work, delivering) if outputs else tuple(chain.work),
            findings=tuple(self._inspector.findings),
        )

    def _seal(self, origin: Origin) -> Seal | None:
        if self._signer is None:
            return None
        claim = Claim(
            maker=self._maker,
            clip=origin.clip,
            development=self._signer.credentials.development,
            making=self.plan.making,
            mark_id=self.plan.mark_id,
        )
        return Seal(signer=self._signer, claim=claim)


def _number(latents: torch.Tensor) -> str:
    """The number of a clip: a digest of its latents, so that the same clip has the same number on every run."""
    return hashlib.sha256(latents.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()[:32]
