"""A denoiser of both A14B experts on one card that holds one at a time, called over a socket: what serving adds.

`python -m benchmarks a14b_serving` needs a GPU and 64 GiB of host memory for the expert that waits and the one that
works; `--small` is the same harness with a tiny model for the CPU. The weights are zeros, which take no room on disk:
every kernel and copy runs at full size, but a card computes zeros a little faster than a trained model's numbers. So
the figures are shares and counts of steps.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import grpc
import torch

from benchmarks.measurement import Figure, Report, at_most, card_or_small, place
from models.untrained import write_hollow, write_untrained
from rushes.v1 import denoiser_pb2, denoiser_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.lifecycle import run_server
from services.denoiser.config import DenoiserConfig
from services.denoiser.service import open_denoiser
from services.denoiser.shapes import VideoShape
from services.model.folder import ModelFolder
from tests.denoiser.caller import conditioning, requests, start

Call: TypeAlias = grpc.aio.StreamStreamCall[denoiser_pb2.DenoiseRequest, denoiser_pb2.DenoiseResponse]

STEPS = 4
"""At the reference's shift of 12 three of them are the high-noise expert's."""
TEXT_TOKENS = 12
POLL_SECONDS = 0.005
FULL = VideoShape(width=832, height=480, frames=81)
SMALL = VideoShape(width=64, height=64, frames=9)


@dataclass(kw_only=True, slots=True)
class Bench:
    """A caller of a denoiser."""

    stub: denoiser_pb2_grpc.DenoiserServiceStub
    shape: VideoShape
    text_dim: int
    samples: dict[str, list[float]] = field(default_factory=dict)

    def call(self, seed: int, *, end: int = STEPS, priority: int = 0, everything: bool = False) -> Call:
        """Steps from noise on; `everything` asks for a preview and a checkpoint at each."""
        drawn = torch.randn(2, TEXT_TOKENS, self.text_dim, generator=torch.Generator().manual_seed(seed))
        text = conditioning(prompt=drawn[0], negative_prompt=drawn[1])
        first = start(
            text,
            shape={"width": self.shape.width, "height": self.shape.height, "num_frames": self.shape.frames},
            sampling={"steps": STEPS},
            seed=seed,
            end_step=end,
            priority=priority,
        )
        if everything:
            first.previews.every_steps = first.checkpoints.every_steps = 1
        called: Call = self.stub.Denoise(requests(first, text))
        return called

    async def gaps(self) -> float:
        """The share of a run's time in which the device had no step of it, previews and checkpoints included."""
        begun = time.perf_counter()
        call = self.call(1, everything=True)
        steps = [step.seconds async for step in _steps(call)]
        wall = time.perf_counter() - begun
        self.samples["a step, previews and checkpoints on"] = steps
        return 1 - sum(steps) / wall

    async def cancelled_after(self) -> float:
        """Steps from a cancel to the moment when the seat is free."""
        call = self.call(2)
        steps = _steps(call)
        # The first step may wait for its expert.
        await anext(steps)
        step = await anext(steps)
        begun = time.perf_counter()
        call.cancel()
        while (await self.described()).memory.reserved_bytes:  # noqa: ASYNC110  (asked over the wire, as anyone would)
            await asyncio.sleep(POLL_SECONDS)
        return (time.perf_counter() - begun) / step.seconds

    async def preempted_after(self) -> int:
        """Steps that a draft run still finishes from a priority run's call to that one's first step."""
        order: list[str] = []
        underway = asyncio.Event()

        async def follow(name: str, call: Call) -> None:
            async for _ in _steps(call):
                order.append(name)
                underway.set()

        async def ask() -> None:
            await underway.wait()
            order.append("asked")
            await follow("priority", self.call(4, end=1, priority=50))

        async with asyncio.TaskGroup() as group:
            group.create_task(follow("draft", self.call(3, end=3)))
            group.create_task(ask())
        return order.index("priority") - order.index("asked") - 1

    async def described(self) -> denoiser_pb2.DescribeDenoiserResponse:
        """What the denoiser says of itself."""
        response: denoiser_pb2.DescribeDenoiserResponse = await self.stub.DescribeDenoiser(
            denoiser_pb2.DescribeDenoiserRequest()
        )
        return response


async def _steps(call: Call) -> AsyncIterator[denoiser_pb2.StepProgress]:
    async for response in call:
        if response.HasField("step"):
            yield response.step


def _noted(name: str, value: float, _bound: float, note: str = "") -> Figure:
    return Figure(name=name, value=value, unit="ratio", note=note)


def _share_shards(folder: Path) -> None:
    """Let both experts be the same files: a host need not read zeros twice."""
    for shard in (folder / "transformer").glob("*.safetensors"):
        twin = folder / "transformer_2" / shard.name
        twin.unlink()
        os.link(shard, twin)


@asynccontextmanager
async def open_bench(folder: Path, shape: VideoShape) -> AsyncIterator[Bench]:
    """A denoiser in this process behind a socket of its own, and a caller of it."""
    config = DenoiserConfig(
        model=folder,
        listen="127.0.0.1:0",
        experts="swap",
        slots=2,
        shapes=str(shape),
        memory_bytes=None if torch.cuda.is_available() else 2**30,
    )
    async with (
        run_server(config, "denoiser", partial(open_denoiser, config)) as running,
        open_channel(running.address) as channel,
    ):
        text_dim = int(ModelFolder(folder).component("transformer", verify=False).config["text_dim"])
        yield Bench(stub=denoiser_pb2_grpc.DenoiserServiceStub(channel), shape=shape, text_dim=text_dim)


async def measure(repeats: int = 1, *, small: bool = False) -> Report:
    """One start, and then `repeats` rounds of a run, a cancel and a preemption."""
    device = card_or_small("a14b_serving", small=small)
    shape = SMALL if small else FULL
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        if small:
            write_untrained(folder)
        else:
            write_hollow(folder)
            _share_shards(folder)
        begun = time.perf_counter()
        async with open_bench(folder, shape) as bench:
            started = time.perf_counter() - begun
            rounds = [
                (await bench.gaps(), await bench.cancelled_after(), await bench.preempted_after())
                for _ in range(repeats)
            ]
            described = await bench.described()
    gaps, cancels, preemptions = (max(values) for values in zip(*rounds, strict=True))
    measured = described.memory.measured[0]
    # The goals are the card's: a step of the tiny model is shorter than a message's way.
    held = at_most if device.type == "cuda" else _noted
    share = "share of a run without a step of it on the device"
    return Report(
        title=f"Both experts in turn on one {place(device)}, {shape}, {described.dtype}, zero weights, over a socket",
        figures=(
            Figure(name="from nothing to serving, warmed up", value=started, unit="s"),
            Figure(
                name="experts change places",
                value=described.residency.swap_seconds,
                unit="s",
                note=f"the last of {described.residency.swaps}",
            ),
            held(share, gaps, 0.05, note="with a preview and a checkpoint at every step"),
            held("from a cancel to a free seat, in steps", cancels, 1.1),
            held("steps of a draft that a priority run waits for", preemptions, 1),
            Figure(
                name="memory of a run, measured at start",
                value=measured.peak_bytes / 2**30,
                unit="GiB",
                note=f"{measured.held_bytes / 2**30:.2f} GiB of it from step to step",
            ),
        ),
        samples=bench.samples,
    )
