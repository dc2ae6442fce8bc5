"""Develops previews beside the steps: one at a time, the newest waiting one next, older ones dropped."""

import asyncio
from dataclasses import dataclass

import torch

from services.denoiser.outbox import Outbox
from services.denoiser.previews import PreviewRequest, Source, encode_picture
from services.denoiser.shapes import VideoShape


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exposed:
    pixels: torch.Tensor
    step_index: int


class Darkroom:
    """Encodes previews in a thread that is not the device's and puts them into the outbox."""

    def __init__(
        self,
        request: PreviewRequest,
        shape: VideoShape,
        outbox: Outbox,
        group: asyncio.TaskGroup,
        source: Source,
    ) -> None:
        """`group` is the lifetime of the encoding, `source` what makes the pixels."""
        self._request = request
        self._source = source
        self._shape = shape
        self._outbox = outbox
        self._group = group
        self._waiting: _Exposed | None = None
        self._busy = False
        self.dropped = 0

    def submit(self, pixels: torch.Tensor, step_index: int) -> None:
        """Develop `pixels`, [frames, H, W, 3] uint8, unless a newer submission overtakes them."""
        if self._waiting is not None:
            self.dropped += 1
        self._waiting = _Exposed(pixels=pixels, step_index=step_index)
        if not self._busy:
            self._busy = True
            self._group.create_task(self._develop())

    def close(self) -> None:
        """Drop what waits; what is in work is finished."""
        if self._waiting is not None:
            self._waiting = None
            self.dropped += 1

    async def _develop(self) -> None:
        try:
            while self._waiting is not None:
                exposed, self._waiting = self._waiting, None
                picture = await asyncio.to_thread(
                    encode_picture,
                    exposed.pixels,
                    step_index=exposed.step_index,
                    encoding=self._request.encoding,
                    clip_width=self._shape.width,
                    clip_height=self._shape.height,
                    max_edge=self._request.max_edge,
                    source=self._source,
                )
                self._outbox.put_picture(picture)
        finally:
            self._busy = False
