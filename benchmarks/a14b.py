"""One expert of the full A14B configuration with random weights on one card: seconds a step against the card's floor.

`python -m benchmarks a14b` needs a GPU with room for what it measures; `--small` is the same harness at a size for the
CPU. A step is guided: two evaluations. The floor is their multiplications at the matrix rate measured on the same card.
The kernel of the self-attention is the one that measures fastest there, as `--attention measure` has it; the eager loop
of diffusers has its own choice, its compiled one the same kernel.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import WanTransformer3DModel

from benchmarks.measurement import Figure, Report, at_least, at_most, card_or_small, place
from services.denoiser import attention
from services.denoiser.float8 import FLOAT8, to_float8
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.transformer import Transformer

Evaluation: TypeAlias = Callable[[], object]
Way: TypeAlias = Callable[[VideoShape], list[Evaluation]]
"""The evaluations of one guided step at a size, ready to run."""

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
    device = card_or_small("a14b", small=small)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    bench = Bench(size=size, device=device, rate=matrix_rate(size, device, dtype), repeats=repeats)
    bench.note(Figure(name=f"matrix rate, {name}", value=bench.rate / 1e12, unit="TFLOP/s"))
    kernel = bench.kernel(dtype)
    module = random_expert(size, device, dtype, seed=0)
    plain = bench.transformer(module, kernel)
    bench.rounds({"rushes": bench.ours(plain), "diffusers": bench.theirs(module)})
    exact = bench.velocity(plain)
    other = bench.transformer(random_expert(size, device, dtype, seed=1), kernel)
    bench.both(plain, other)
    del other
    plain.compile_blocks()
    if kernel == "cudnn":
        # So that the ratio is of what is around the kernel, and not of kernels.
        module.set_attention_backend("_native_cudnn")
    module.compile_repeated_blocks(dynamic=False)
    bench.rounds({"rushes compiled": bench.ours(plain), "diffusers compiled": bench.theirs(module)})
    # The compiled wrappers hold on to the weights that float8 replaces.
    del plain, module
    torch.compiler.reset()
    module = random_expert(size, device, dtype, seed=0)
    bench.note(Figure(name="float8: greatest relative error of a layer", value=to_float8(module), unit="ratio"))
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        eight = matrix_rate(size, device, FLOAT8)
        bench.note(Figure(name="matrix rate, float8", value=eight / 1e12, unit="TFLOP/s"))
    small_weights = bench.transformer(module, kernel)
    small_weights.compile_blocks()
    bench.rounds({"rushes compiled, float8": bench.ours(small_weights)})
    error = float((bench.velocity(small_weights) - exact).norm() / exact.norm())
    bench.note(Figure(name="float8: relative error of a velocity of random weights", value=error, unit="ratio"))
    kind = "small configuration" if small else "full A14B configuration"
    title = f"A14B, {kind}, random weights, {name}, {place(device)}"
    return Report(title=title, figures=tuple(bench.figures), samples=bench.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The figures so far, and what they are measured with; `rate` is the card's in FLOP/s."""

    size: Configuration
    device: torch.device
    rate: float
    repeats: int
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, figure: Figure) -> None:
        """Keep a figure, and say it: on a card that is lent by the minute the rest may never come."""
        self.figures.append(figure)
        sys.stderr.write(f"  {figure.name}: {figure.value:.4g} {figure.unit} {figure.note}\n")

    def kernel(self, dtype: torch.dtype) -> str:
        """The attention kernel that a denoiser would choose here, told `--attention measure`."""
        for shape in self.size.shapes:
            tokens = shape.latents(16).tokens
            timings = attention.measure(
                attention.present(self.device),
                heads=self.size.heads,
                tokens=tokens,
                head_dim=self.size.head_dim,
                dtype=dtype,
                device=self.device,
            )
            for timing in timings:
                rate = 4 * tokens**2 * self.size.dim / timing.seconds / 1e12
                name = f"attention kernel {timing.name}, {shape}"
                self.note(Figure(name=name, value=rate, unit="TFLOP/s", note=f"relative error {timing.error:.1e}"))
        return attention.fastest(timings)

    def transformer(self, module: WanTransformer3DModel, kernel: str) -> Transformer:
        """The expert with a kernel for its self-attention."""
        transformer = Transformer(module)
        transformer.attend = attention.named(kernel, self.device)
        return transformer

    def ours(self, transformer: Transformer) -> Way:
        """A guided step as a denoiser takes it: the texts were read before."""

        def evaluations(shape: VideoShape) -> list[Evaluation]:
            latents = shape.latents(transformer.channels)
            x = prior(latents, 0).to(self.device)
            contexts = [transformer.read(text, latents) for text in self._texts().split(1)]
            return [partial(transformer, x, 500.0, context) for context in contexts]

        return evaluations

    def theirs(self, module: WanTransformer3DModel) -> Way:
        """A guided step as diffusers' pipeline takes it."""

        def evaluations(shape: VideoShape) -> list[Evaluation]:
            x = prior(shape.latents(16), 0).to(self.device, module.patch_embedding.weight.dtype)
            told = torch.full((1,), 500, device=self.device)
            texts = self._texts().to(x.dtype).split(1)
            return [torch.no_grad()(partial(module, x, told, text, return_dict=False)) for text in texts]

        return evaluations

    def velocity(self, transformer: Transformer) -> torch.Tensor:
        """At the smallest size, for one text, on the CPU."""
        return torch.as_tensor(self.ours(transformer)(self.size.shapes[0])[0]()).cpu()

    def both(self, high: Transformer, low: Transformer) -> None:
        """One text by one expert and the same by the other, both on the device."""
        experts = [self.ours(expert) for expert in (high, low)]
        self.rounds(
            {"both experts resident, in turn": lambda shape: [expert(shape)[0] for expert in experts]},
            self.size.shapes[:1],
        )

    def rounds(self, ways: Mapping[str, Way], shapes: Sequence[VideoShape] = ()) -> None:
        """Time the ways in turn on every size; of the first of ours the share of the floor, to the second the ratio."""
        for shape in shapes or self.size.shapes:
            steps = {name: way(shape) for name, way in ways.items()}
            peaks, firsts = {}, {}
            for name, (first, *_) in steps.items():
                self._clear()
                firsts[name] = _seconds(first, self.device)
                peaks[name] = torch.cuda.max_memory_allocated(self.device) if self._on_card else 0
            taken: dict[str, list[float]] = {name: [] for name in steps}
            # The largest sizes take most of the time, and the card repeats itself within a percent.
            for _ in range(self.repeats if shape is self.size.shapes[0] else max(1, self.repeats // 2)):
                for name, evaluations in steps.items():
                    taken[name].append(_seconds(lambda each=evaluations: [run() for run in each], self.device))
            for name, seconds in taken.items():
                self.samples[f"{name}, {shape}"] = seconds
                memory = f"; peak {peaks[name] / 2**30:.1f} GiB" if self._on_card else ""
                self.note(
                    Figure(
                        name=f"{name}, {shape}: a guided step",
                        value=statistics.median(seconds),
                        unit="s",
                        note=f"first evaluation {firsts[name]:.2f} s{memory}",
                    )
                )
            self._compare(list(taken), shape)

    def _compare(self, names: Sequence[str], shape: VideoShape) -> None:
        medians = [statistics.median(self.samples[f"{name}, {shape}"]) for name in names]
        share = 2 * self.size.flops(shape.latents(16)) / self.rate / medians[0]
        title = f"{names[0]}, {shape}: share of the floor"
        # The goal is the card's, for its own type: on the CPU the figure only shows that the harness works.
        held = self._on_card and len(names) > 1
        self.note(at_least(title, share, GOOD_SHARE) if held else Figure(name=title, value=share, unit="ratio"))
        for name, seconds in zip(names[1:], medians[1:], strict=True):
            self.note(at_most(f"{names[0]} / {name}, {shape}", medians[0] / seconds, 1.0))

    @property
    def _on_card(self) -> bool:
        return self.device.type == "cuda"

    def _texts(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randn(2, self.size.text_length, self.size.text_dim, generator=generator).to(self.device)

    def _clear(self) -> None:
        if self._on_card:
            # What a compiled way held on to would count as the next one's.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


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
    return {str(shape): FULL.flops(shape.latents(16)) / 1e15 for shape in FULL.shapes}
