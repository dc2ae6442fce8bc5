"""One rendering: the chain that a plan asks for, run over one clip's latents."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import torch

from services.model.device import DeviceThread
from services.postprocess.chain import Chain, Work
from services.postprocess.decode import WanDecoder, decode_frames
from services.postprocess.fragments import Fragment
from services.postprocess.mp4 import Mp4Encoder
from services.postprocess.plan import RenderPlan
from services.postprocess.stills import Still, StillTaker


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


Event: TypeAlias = Work | Fragment | Poster | ContactSheet | Finished


class Rendering:
    """The stages that `plan` asks for, ready to run once. Raises `ValueError` for a size that cannot be encoded."""

    def __init__(self, plan: RenderPlan, decoder: WanDecoder, *, encoder_threads: int) -> None:
        self.plan = plan
        self._decoder = decoder
        self._stills = StillTaker(total=plan.num_frames)
        self._encoder = Mp4Encoder(
            width=plan.width, height=plan.height, fps=plan.fps, encoding=plan.encoding, threads=encoder_threads
        )
        self.content_type = self._encoder.content_type

    async def events(self, device: DeviceThread, latents: torch.Tensor) -> AsyncGenerator[Event, None]:
        """Render normalised `latents` [C, T, h, w]; a `Work` for each decoded chunk, fragments, stills, `Finished`.

        Raises `StageFailed` where a stage breaks. Closing it early stops within one chunk.
        """
        chain = Chain(device, decode_frames(self._decoder, latents), [self._stills, self._encoder])
        digest, size, frames = hashlib.sha256(), 0, 0
        async with aclosing(chain.items()) as items:
            async for item in items:
                if isinstance(item, Fragment):
                    digest.update(item.data)
                    size += len(item.data)
                    frames += item.frame_count
                yield item
        work = list(chain.work)
        if self.plan.poster:
            start = time.monotonic()
            yield Poster(still=await asyncio.to_thread(self._stills.poster))
            work.append(Work(stage="still", start=start, duration=time.monotonic() - start, frames=1))
        if self.plan.contact_sheet:
            start = time.monotonic()
            yield ContactSheet(still=await asyncio.to_thread(self._stills.contact_sheet))
            work.append(Work(stage="still", start=start, duration=time.monotonic() - start, frames=1))
        yield Finished(num_frames=frames, size_bytes=size, sha256=digest.hexdigest(), work=tuple(work))
