"""Two processes of one expert each against one process with both: the same jobs, the same latents.

Run as a module it draws when each step of each job ran: `python -m benchmarks.pools PICTURE.svg`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch

from benchmarks.measurement import Figure, Report, interleave, ratio
from benchmarks.work import EMBEDDED_MODEL, embedded_work
from rushes.v1 import denoiser_pb2, denoiser_pb2_grpc, sampling_pb2, tensors_pb2
from services.chassis.bundles import BundleReceiver, chunks, pack
from services.chassis.channels import open_channel
from services.model.bundles import to_bundle
from services.model.folder import ModelFolder
from services.model.manifest import Manifest

mpl.use("Agg")
from matplotlib import pyplot as plt

JOBS = 4
STEPS = 20
KINDS = tensors_pb2.BundleKind


class Denoiser:
    """One process, and the lock of its one slot."""

    def __init__(self, stub: denoiser_pb2_grpc.DenoiserServiceStub) -> None:
        self.stub = stub
        self.slot = asyncio.Lock()


@asynccontextmanager
async def denoiser(experts: str, threads: int) -> AsyncIterator[Denoiser]:
    """A process that holds `experts`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.denoiser", "--model", str(EMBEDDED_MODEL), "--experts", experts),
        *("--device", "cpu", "--dtype", "float32", "--threads", str(threads)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        if process.stdout is None:
            raise RuntimeError("started without a pipe")
        address = (await process.stdout.readline()).decode().split()[-1]
        async with open_channel(address) as channel:
            yield Denoiser(denoiser_pb2_grpc.DenoiserServiceStub(channel))
    finally:
        process.terminate()
        await process.communicate()


def conditioning(seed: int) -> bytes:
    """Embeddings as long as a short prompt's."""
    generator = torch.Generator().manual_seed(seed)
    width = int(ModelFolder(EMBEDDED_MODEL).component("transformer", verify=False).config["text_dim"])
    texts = {name: torch.randn(8, width, generator=generator) for name in ("prompt", "negative_prompt")}
    return pack(to_bundle(texts, {}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A step of a job: when it began, by the loop's clock, and how long it took."""

    job: int
    expert: str
    began: float
    seconds: float


async def job(pools: Sequence[Denoiser], seed: int, text: bytes, bars: list[Bar]) -> bytes:
    """The latents of one job, handed from one process to the next; adds its steps to `bars`."""
    work, state, step = embedded_work(), b"", 0
    for pool in pools:
        start = denoiser_pb2.DenoiseStart(
            shape=sampling_pb2.VideoShape(width=work.width, height=work.height, num_frames=work.num_frames),
            sampling=sampling_pb2.SamplingSettings(steps=STEPS),
            seed=seed,
            first_step=step,
            conditioning_size=len(text),
            state_size=len(state),
        )
        requests = [denoiser_pb2.DenoiseRequest(start=start)]
        for kind, payload in ((KINDS.BUNDLE_KIND_CONDITIONING, text), (KINDS.BUNDLE_KIND_SOLVER_STATE, state)):
            requests += [denoiser_pb2.DenoiseRequest(chunk=chunk) for chunk in chunks(kind, payload)]
        async with pool.slot:
            receiver: BundleReceiver | None = None
            called = time.monotonic()
            call: AsyncIterator[denoiser_pb2.DenoiseResponse] = pool.stub.Denoise(iter(requests))  # type: ignore[assignment]  # a grpc.aio channel's
            async for response in call:
                match response.WhichOneof("message"):
                    case "bundle":
                        receiver = BundleReceiver(response.bundle.header.kind, response.bundle.header.total_size)
                    case "chunk" if receiver is not None and receiver.feed(response.chunk):
                        state = bytes(receiver.payload())
                    case "result":
                        step = response.result.next_step
                        bars += [
                            Bar(
                                job=seed,
                                expert=span.attributes["expert"],
                                began=called + span.start_seconds,
                                seconds=span.duration_seconds,
                            )
                            for span in response.result.spans
                            if span.name == "denoise.step"
                        ]
    return state


async def measure(repeats: int = 5) -> Report:
    """Seconds for some jobs at once, either way."""
    texts = [conditioning(seed) for seed in range(JOBS)]
    made: dict[str, list[bytes]] = {}
    async with AsyncExitStack() as stack:
        high, low = [await stack.enter_async_context(denoiser(experts, 1)) for experts in ("high", "low")]
        both = await stack.enter_async_context(denoiser("both", 1))

        async def jobs(name: str, pools: Sequence[Denoiser]) -> None:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job(pools, seed, text, [])) for seed, text in enumerate(texts)]
            made[name] = [task.result() for task in tasks]

        samples = await interleave(
            {
                "two processes, one expert each": lambda: jobs("split", (high, low)),
                "one process with both": lambda: jobs("both", (both,)),
            },
            repeats,
        )
    if made["split"] != made["both"]:
        raise RuntimeError("split pools made other latents than one process with both")
    boundary = Manifest.load(EMBEDDED_MODEL).defaults.boundary_ratio
    throughput = ratio(samples, "one process with both", "two processes, one expert each")
    return Report(
        title=f"Expert pools: {JOBS} jobs of {STEPS} steps, boundary {boundary}, one core a process",
        figures=(
            Figure(
                name="throughput of two processes with one expert each, against one with both",
                value=throughput,
                unit="ratio",
                note="latents equal bit for bit",
            ),
        ),
        samples=samples,
    )


async def draw(path: Path) -> None:
    """Run the jobs in two pools and draw their steps, one row a job, one colour an expert."""
    bars: list[Bar] = []
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(denoiser(experts, 1)) for experts in ("high", "low")]
        await job(pools, 0, conditioning(0), [])
        async with asyncio.TaskGroup() as group:
            for seed in range(JOBS):
                group.create_task(job(pools, seed, conditioning(seed), bars))
    origin = min(bar.began for bar in bars)
    figure, panel = plt.subplots(figsize=(9, 0.8 + 0.4 * JOBS))
    for expert, colour in (("high", "#1f4e79"), ("low", "#e08a2e")):
        drawn = [bar for bar in bars if bar.expert == expert]
        panel.barh(
            [bar.job for bar in drawn],
            [bar.seconds for bar in drawn],
            left=[bar.began - origin for bar in drawn],
            height=0.6,
            color=colour,
            edgecolor="white",
            linewidth=0.4,
            label=f"{expert}-noise expert, a process of its own",
        )
    panel.set_yticks(range(JOBS), [f"job {number}" for number in range(JOBS)])
    panel.invert_yaxis()
    panel.set_xlabel("seconds; each bar is one step")
    panel.legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    asyncio.run(draw(Path(sys.argv[1])))
