"""The postprocess chain against its own stages run one after another over the whole clip, and its memory by length.

`python -m benchmarks.postprocess FRAMES` renders one clip and prints the most memory that the process ever held.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import torch
from diffusers import AutoencoderKLWan

from benchmarks.measurement import Report, at_most, interleave, ratio
from benchmarks.work import EMBEDDED_MODEL
from rushes.v1 import finishing_pb2, postprocess_pb2, sampling_pb2
from services.model.device import DeviceThread
from services.model.folder import ModelFolder
from services.model.weights import load_module
from services.postprocess.decode import WanDecoder, decode_frames
from services.postprocess.fragments import Fragment
from services.postprocess.orders import plan_rendering
from services.postprocess.rendering import Rendering

EDGE = 192
FRAMES = 33
LENGTHS = (33, 81, 241)


@dataclass(kw_only=True, slots=True)
class Bench:
    """The embedded model's decoder on the CPU, and clips with interpolation x2 and upscaling x2.

    `first_shares` are the first playable fragment's shares of the whole time, one for each chain that was run.
    """

    decoder: WanDecoder
    first_shares: list[float] = field(default_factory=list)

    @classmethod
    def load(cls) -> "Bench":
        """One thread of torch and of OpenCV each, as a service has them that shares its cores."""
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        vae = load_module(
            ModelFolder(EMBEDDED_MODEL).component("vae"), AutoencoderKLWan, torch.float32, torch.device("cpu")
        )
        return cls(decoder=WanDecoder(vae))

    def rendering(self, frames: int) -> Rendering:
        """The opened chain for a clip of so many frames."""
        start = postprocess_pb2.RenderStart(
            shape=sampling_pb2.VideoShape(width=EDGE, height=EDGE, num_frames=frames),
            finish=finishing_pb2.FinishPlan(target_fps=32, upscale=2, upscaler="lanczos"),
        )
        return Rendering(plan_rendering(start, fps=Fraction(16)), self.decoder, encoder_threads=1)

    def latents(self, frames: int) -> torch.Tensor:
        """Smooth latents, which decode to pictures that move."""
        shape = self.decoder.latents_shape(width=EDGE, height=EDGE, num_frames=frames)
        generator = torch.Generator().manual_seed(11)
        coarse = torch.randn(shape[0], max(2, shape[1] // 4), 4, 4, generator=generator)
        return torch.nn.functional.interpolate(coarse[None], size=shape[1:], mode="trilinear")[0] * 1.5

    async def chain(self, frames: int = FRAMES) -> None:
        """All stages at once, chunk by chunk."""
        rendering, latents = self.rendering(frames), self.latents(frames)
        begun, first = time.perf_counter(), 0.0
        async with DeviceThread.open() as device, aclosing(rendering.events(device, latents)) as events:
            async for event in events:
                if isinstance(event, Fragment) and event.frame_count and not first:
                    first = time.perf_counter() - begun
        self.first_shares.append(first / (time.perf_counter() - begun))

    async def one_after_another(self, frames: int = FRAMES) -> None:
        """The same stages, each over the whole clip before the next begins."""
        rendering, latents = self.rendering(frames), self.latents(frames)

        def run() -> None:
            items: list[Any] = list(decode_frames(self.decoder, latents))
            for stage in rendering.stages:
                given = [made for item in items for made in stage.push(item)]
                items = [*given, *stage.flush()]

        await asyncio.to_thread(run)


def peak_megabytes(frames: int) -> float:
    """The most memory that a process of its own held while it rendered a clip of so many frames."""
    command = [sys.executable, "-m", "benchmarks.postprocess", str(frames)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_here() -> float:
    """The most memory that this program held, in megabytes.

    Not `getrusage`, whose figure of a child begins with what its parent held before the program was loaded.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


async def measure(repeats: int = 5) -> Report:
    """The chain's time and first fragment by a clip of 33 frames, the memory at 33, 81 and 241."""
    bench = Bench.load()
    names = {"chain": "chain", "serial": "stages one after another"}
    samples = await interleave({names["chain"]: bench.chain, names["serial"]: bench.one_after_another}, repeats)
    peaks = {frames: await asyncio.to_thread(peak_megabytes, frames) for frames in LENGTHS}
    growth = max(peaks.values()) / min(peaks.values())
    held = ", ".join(f"{peak:.0f} MB at {frames}" for frames, peak in peaks.items())
    work = f"{FRAMES} frames of {EDGE}x{EDGE}, 32 fps, x2"
    return Report(
        title=f"Postprocess: {work}, Lanczos, H.264, float32 on two cores",
        figures=(
            at_most("chain against its stages one after another", ratio(samples, *names.values()), 0.75),
            at_most("first playable fragment, share of the whole", statistics.median(bench.first_shares), 0.25),
            at_most("memory at three lengths, most to least", growth, 1.1, note=held),
        ),
        samples=samples,
    )


if __name__ == "__main__":
    asyncio.run(Bench.load().chain(int(sys.argv[1])))
    print(peak_here())
