"""One expert of the full A14B configuration with random weights on one card: seconds a step against the card's floor.

`python -m benchmarks a14b` needs a GPU with room for what it measures; `--small` is the same harness at a size for the
CPU. A step is guided: two evaluations. The floor is their multiplications at the matrix rate measured on the same card.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import WanTransformer3DModel

from benchmarks.measurement import Figure, Report, at_least, at_most
from services.denoiser.float8 import FLOAT8, to_float8
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.transformer import Transformer

GOOD_SHARE = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Size of an expert and of the clips that it is measured on."""

    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    text_length: int
    shapes: tuple[VideoShape, ...]
    matrix: int

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.heads * self.head_dim

    def flops(self, latents: LatentShape) -> float:
        """Of one evaluation for one text, a multiplication and an addition being two: 6.52e15 for A14B at 720p."""
        tokens, d = latents.tokens, self.dim
        block = 8 * tokens * d**2 + 4 * tokens**2 * d
        block += 4 * tokens * d**2 + 4 * tokens * self.text_length * d
        block += 4 * tokens * d * self.ffn_dim
        return float(self.layers * block)


FULL = Configuration(
    layers=40,
    heads=40,
    head_dim=128,
    ffn_dim=13824,
    text_dim=4096,
    text_length=512,
    shapes=(VideoShape(width=832, height=480, frames=81), VideoShape(width=1280, height=720, frames=81)),
    matrix=8192,
)
SMALL = Configuration(
    layers=4,
    heads=4,
    head_dim=64,
    ffn_dim=704,
    text_dim=128,
    text_length=64,
    shapes=(VideoShape(width=128, height=128, frames=17), VideoShape(width=208, height=128, frames=17)),
    matrix=1024,
)


def random_expert(size: Configuration, device: torch.device, dtype: torch.dtype, seed: int) -> WanTransformer3DModel:
    """An expert built where it is used; what the class keeps in float32 stays so."""
    with init_empty_weights(include_buffers=False):
        module = WanTransformer3DModel(
            num_attention_heads=size.heads,
            attention_head_dim=size.head_dim,
            num_layers=size.layers,
            ffn_dim=size.ffn_dim,
            text_dim=size.text_dim,
        )
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        kept = any(part in name.split(".") for part in module._keep_in_fp32_modules)
        value = torch.empty(parameter.shape, device=device, dtype=torch.float32 if kept else dtype)
        value.normal_(std=0.02, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.add_(1)
        set_module_tensor_to_device(module, name, device, value=value, dtype=value.dtype)
    return module.to(device).eval().requires_grad_(requires_grad=False)


def matrix_rate(size: Configuration, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the largest square product of `dtype`, the best of some rounds."""
    n = size.matrix
    a = torch.randn(n, n, device=device).to(dtype)
    if dtype is FLOAT8:
        one = torch.ones(n, 1, device=device)
        product: Callable[[], object] = lambda: torch._scaled_mm(  # noqa: E731 - one of two ways to the same number
            a, a.t(), scale_a=one, scale_b=one.t(), out_dtype=torch.bfloat16
        )
    else:
        product = lambda: a @ a  # noqa: E731 - see above
    _seconds(product, device)
    return 2.0 * n**3 / min(_seconds(product, device) for _ in range(20))


async def measure(repeats: int = 3, *, small: bool = False) -> Report:
    """Measure every way on every size, the plain ones first: float8 replaces the weights."""
    size = SMALL if small else FULL
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type != "cuda" and not small:
        raise SystemExit("a14b needs an NVIDIA GPU: none is visible. --small runs the same harness on the CPU.")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    module = random_expert(size, device, dtype, seed=0)
    rate = matrix_rate(size, device, dtype)
    name = str(dtype).removeprefix("torch.")
    figures = [Figure(name=f"matrix rate, {name}", value=rate / 1e12, unit="TFLOP/s")]
    samples: dict[str, list[float]] = {}
    bench = _Bench(size=size, device=device, rate=rate, repeats=repeats, figures=figures, samples=samples)
    plain = Transformer(module)
    bench.ours("rushes", plain, floor=True)
    bench.theirs("diffusers", module)
    bench.ratios("rushes", "diffusers")
    other = Transformer(random_expert(size, device, dtype, seed=1))
    bench.both("both experts resident, in turn", plain, other)
    del other
    compiled = Transformer(module)
    compiled.compile_blocks()
    bench.ours("rushes compiled", compiled, floor=True)
    module.compile_repeated_blocks(dynamic=False)
    bench.theirs("diffusers compiled", module)
    bench.ratios("rushes compiled", "diffusers compiled")
    # The compiled wrappers hold on to the weights that float8 replaces.
    del compiled, plain, module
    torch.compiler.reset()
    module = random_expert(size, device, dtype, seed=0)
    error = to_float8(module)
    figures.append(Figure(name="float8: greatest relative error of a layer", value=error, unit="ratio"))
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        eight = matrix_rate(size, device, FLOAT8)
        figures.append(Figure(name="matrix rate, float8", value=eight / 1e12, unit="TFLOP/s"))
    bench.ours("rushes float8", Transformer(module), floor=False)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kind = "small configuration" if small else "full A14B configuration"
    return Report(title=f"A14B, {kind}, random weights, {name}, {where}", figures=tuple(figures), samples=samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    size: Configuration
    device: torch.device
    rate: float
    repeats: int
    figures: list[Figure]
    samples: dict[str, list[float]]

    def ours(self, name: str, transformer: Transformer, *, floor: bool) -> None:
        for shape in self.size.shapes:
            latents = shape.latents(transformer.channels)
            texts = self._texts().split(1)
            contexts = [transformer.read(text, latents) for text in texts]
            x = prior(latents, 0).to(self.device)
            seconds = self._measured(
                f"{name}, {_called(shape)}", lambda x=x, c=contexts: [transformer(x, 500.0, one) for one in c]
            )
            if floor:
                share = 2 * self.size.flops(latents) / self.rate / seconds
                title = f"{name}, {_called(shape)}: share of the floor"
                # The goal is the card's: on the CPU the figure only shows that the harness works.
                on_card = self.device.type == "cuda"
                self.figures.append(
                    at_least(title, share, GOOD_SHARE) if on_card else Figure(name=title, value=share, unit="ratio")
                )

    def theirs(self, name: str, module: WanTransformer3DModel) -> None:
        for shape in self.size.shapes:
            x = prior(shape.latents(16), 0).to(self.device, module.patch_embedding.weight.dtype)
            told = torch.full((1,), 500, device=self.device)
            texts = self._texts().to(x.dtype).split(1)

            @torch.no_grad()
            def step(x: torch.Tensor = x, told: torch.Tensor = told, texts: Any = texts) -> object:
                return [module(x, told, text, return_dict=False) for text in texts]

            self._measured(f"{name}, {_called(shape)}", step)

    def both(self, name: str, high: Transformer, low: Transformer) -> None:
        shape = self.size.shapes[0]
        latents, x = shape.latents(16), prior(shape.latents(16), 0).to(self.device)
        contexts = [(expert, expert.read(self._texts()[:1], latents)) for expert in (high, low)]
        self._measured(f"{name}, {_called(shape)}", lambda: [expert(x, 500.0, context) for expert, context in contexts])

    def ratios(self, of: str, to: str) -> None:
        for shape in self.size.shapes:
            ours, theirs = (statistics.median(self.samples[f"{name}, {_called(shape)}"]) for name in (of, to))
            self.figures.append(at_most(f"{of} / {to}, {_called(shape)}", ours / theirs, 1.0))

    def _texts(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randn(2, self.size.text_length, self.size.text_dim, generator=generator).to(self.device)

    def _measured(self, name: str, step: Callable[[], object]) -> float:
        on_card = self.device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats(self.device)
        first = _seconds(step, self.device)
        taken = [_seconds(step, self.device) for _ in range(self.repeats)]
        self.samples[name] = taken
        seconds = statistics.median(taken)
        memory = f"; peak {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if on_card else ""
        note = f"first {first:.2f} s{memory}"
        self.figures.append(Figure(name=f"{name}: a guided step", value=seconds, unit="s", note=note))
        return seconds


def _called(shape: VideoShape) -> str:
    return f"{shape.width}x{shape.height}x{shape.frames}"


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def described() -> Mapping[str, float]:
    """PFLOP of one evaluation at the full sizes."""
    return {_called(shape): FULL.flops(shape.latents(16)) / 1e15 for shape in FULL.shapes}
