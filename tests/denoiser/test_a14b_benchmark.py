"""The harnesses of the A14B benchmarks: their arithmetic, and runs of them at sizes for the CPU."""

import asyncio
from pathlib import Path
from typing import cast

import pytest
import torch

from benchmarks import a14b, a14b_serving
from services.denoiser.shapes import VideoShape


def test_the_multiplications_are_those_of_the_reference() -> None:
    assert a14b.described() == pytest.approx({"832x480x81": 1.68, "1280x720x81": 6.52}, rel=0.01)


def test_a_random_expert_keeps_in_float32_what_the_class_keeps() -> None:
    module = a14b.random_expert(a14b.SMALL, torch.device("cpu"), torch.bfloat16, seed=0)
    assert module.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert module.blocks[0].scale_shift_table.dtype == torch.float32
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_without_a_gpu_the_full_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        asyncio.run(a14b.measure())


def test_a_bench_measures_both_loops_and_their_ratio() -> None:
    size = a14b.Configuration(
        layers=1,
        heads=2,
        head_dim=24,
        ffn_dim=96,
        text_dim=32,
        text_length=8,
        shapes=(VideoShape(width=32, height=32, frames=5),),
        matrix=64,
    )
    device = torch.device("cpu")
    module = a14b.random_expert(size, device, torch.float32, seed=0)
    bench = a14b.Bench(size=size, device=device, rate=1e9, repeats=1)
    bench.rounds({"rushes": bench.ours(a14b.Transformer(module)), "diffusers": bench.theirs(module)})
    assert [figure.unit for figure in bench.figures] == ["s", "s", "ratio", "ratio"]
    assert all(figure.value > 0 for figure in bench.figures)


def test_a_bench_compares_what_is_the_same_velocity() -> None:
    device, (shape, _) = torch.device("cpu"), a14b.SMALL.shapes
    module = a14b.random_expert(a14b.SMALL, device, torch.float32, seed=0)
    bench = a14b.Bench(size=a14b.SMALL, device=device, rate=1e9, repeats=1)
    for ours, theirs in zip(bench.ours(a14b.Transformer(module))(shape), bench.theirs(module)(shape), strict=True):
        (wanted,) = cast("tuple[torch.Tensor]", theirs())
        v = torch.as_tensor(ours())
        assert float((v - wanted).norm() / wanted.norm()) < 1e-5


async def test_a_caller_measures_a_run_a_cancel_and_a_preemption_of_swapped_experts(untrained: Path) -> None:
    async with a14b_serving.open_bench(untrained, a14b_serving.SMALL) as bench:
        assert 0 < await bench.gaps() < 1
        assert await bench.cancelled_after() > 0
        assert await bench.preempted_after() in range(4)
        assert (await bench.described()).residency.swaps > 0
