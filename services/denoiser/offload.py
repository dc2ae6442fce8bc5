"""Blocks that stay in host memory: each is on the device while it computes, and the next one while it is copied."""

from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn


class HostedBlocks:
    """Transformer blocks for a card that does not hold them all: at most two are on it at once.

    Copies run on a stream of their own from pinned memory, beside the computation.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        """The parameters of `blocks` must be on the CPU."""
        self._blocks = list(blocks)
        self._device = device
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._host = [
            {name: self._pinned(parameter.data) for name, parameter in block.named_parameters()} for block in blocks
        ]
        self.on_device: set[int] = set()

    def __len__(self) -> int:
        return len(self._blocks)

    def walk(self) -> Generator[nn.Module, None, None]:
        """The blocks, each on the device until the next is asked for or the walk is over.

        Close it on the device's thread: one that is left to the garbage collector would end beside another's steps.
        """
        try:
            arrived = self._fetch(0)
            for i in range(len(self._blocks)):
                if arrived is not None:
                    torch.cuda.current_stream(self._device).wait_event(arrived)
                arrived = self._fetch(i + 1)
                yield self._blocks[i]
                self._release(i)
        finally:
            for i in sorted(self.on_device):
                self._release(i)

    def _release(self, i: int) -> None:
        for name, parameter in self._blocks[i].named_parameters():
            if self._cuda:
                # Its memory is free again only when the computation that was queued on it is done.
                parameter.data.record_stream(torch.cuda.current_stream(self._device))
            parameter.data = self._host[i][name]
        self.on_device.discard(i)

    def _fetch(self, i: int) -> Any:
        """Begin to copy block `i`, if there is one; the event of its arrival on CUDA."""
        if i >= len(self._blocks):
            return None
        with torch.cuda.stream(self._stream) if self._cuda else nullcontext():
            for name, parameter in self._blocks[i].named_parameters():
                host = self._host[i][name]
                parameter.data = torch.empty_like(host, device=self._device).copy_(host, non_blocking=True)
            self.on_device.add(i)
            return self._stream.record_event() if self._stream is not None else None

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self._cuda else tensor
