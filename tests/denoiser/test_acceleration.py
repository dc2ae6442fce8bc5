"""Kernels, compiled blocks, float8 and hosted blocks: the same velocity by other ways, which are told apart."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.chassis.errors import FailedPrecondition
from services.denoiser import attention
from services.denoiser.acceleration import accelerate
from services.denoiser.adapters import Adapter, Update
from services.denoiser.config import DenoiserConfig
from services.denoiser.experts import Expert
from services.denoiser.float8 import Float8Linear, quantised, to_float8
from services.denoiser.offload import HostedBlocks
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape
from services.denoiser.transformer import Transformer
from services.model.folder import ModelFolder
from tests.denoiser.conftest import Serve

CPU = torch.device("cpu")
LATENTS = LatentShape(channels=16, frames=2, height=8, width=8)
X = prior(LATENTS, 1)
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def velocity(transformer: Transformer, adapters: Any = ()) -> torch.Tensor:
    return transformer(X, 900.0, transformer.read(TEXT, LATENTS, adapters))


@pytest.fixture
def expert(pool: ExpertPool) -> Transformer:
    """A copy that a test may change."""
    return Transformer(copy.deepcopy(pool.experts[Expert.HIGH].module))


def adapter() -> Adapter:
    generator = torch.Generator().manual_seed(2)
    drawn = Update(down=torch.randn(4, 48, generator=generator), up=torch.randn(48, 4, generator=generator))
    return {"blocks.0.attn1.to_q": drawn, "blocks.1.attn1.to_out.0": drawn}


@pytest.mark.parametrize("name", ["flash", "math"])
def test_every_kernel_on_the_cpu_gives_the_same_velocity(expert: Transformer, name: str) -> None:
    wanted = velocity(expert)
    expert.attend = attention.named(name, CPU)
    assert relative(velocity(expert), wanted) < 1e-5


def test_measuring_times_what_is_present_and_leaves_out_what_fails() -> None:
    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such head size")

    def particular(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("only half precision")

    kernels = {**attention.present(CPU), "broken": broken, "particular": particular}
    timings = attention.measure(kernels, heads=2, tokens=64, head_dim=24, dtype=torch.float32, device=CPU)
    assert [timing.name for timing in timings] == ["sdpa", "flash", "math"]
    assert all(timing.seconds > 0 and timing.error < 1e-5 for timing in timings)


def timing(name: str, seconds: float, error: float = 0.0) -> attention.Timing:
    return attention.Timing(name=name, seconds=seconds, error=error)


def test_the_fastest_kernel_wins_if_it_is_exact_and_clearly_faster() -> None:
    assert attention.fastest([timing("sdpa", 1.0), timing("flash3", 0.6), timing("sage", 0.3, error=0.1)]) == "flash3"
    assert attention.fastest([timing("sdpa", 1.0), timing("cudnn", 0.99)]) == "sdpa"
    assert attention.fastest([]) == "sdpa"


def test_an_absent_kernel_is_refused_naming_those_that_are_here() -> None:
    with pytest.raises(FailedPrecondition, match="sdpa, flash, math"):
        attention.named("flash3", CPU)


def test_a_library_that_was_built_for_another_torch_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol')")
    (tmp_path / "sageattention.py").write_text("def sageattn(*_, **__): ...")
    monkeypatch.syspath_prepend(tmp_path)
    # So that what the import leaves behind is taken back.
    monkeypatch.setitem(sys.modules, "sageattention", None)
    monkeypatch.delitem(sys.modules, "sageattention")
    assert attention._imported("flash_attn_interface") is None
    assert attention._imported("no_such_library") is None
    assert attention._imported("sageattention") is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_both_experts_share_what_is_compiled_for_more_sizes_than_torch_would_by_default(pool: ExpertPool) -> None:
    compiled: list[Any] = []

    def counted(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    sizes = [LatentShape(channels=16, frames=frames, height=4, width=4) for frames in range(1, 13)]
    for each in pool.experts.values():
        expert = Transformer(each.module)
        expert.compile_blocks(backend=counted)
        for latents in sizes:
            x = prior(latents, 1)
            wanted = each(x, 900.0, each.read(TEXT[:1], latents))
            assert relative(expert(x, 900.0, expert.read(TEXT[:1], latents)), wanted) < 1e-5
    # No size falls back to the plain block.
    assert len(compiled) == len(sizes)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_one_block_is_compiled_for_all_and_equals_the_plain_one(expert: Transformer) -> None:
    wanted, adapted = velocity(expert), velocity(expert, [(adapter(), 0.5)])
    graphs: list[Any] = []

    def counted(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    expert._compiled = torch.compile(expert._block, dynamic=False, backend=counted, fullgraph=True)
    expert(X, 900.0, expert.read(TEXT[:1], LATENTS))
    assert len(graphs) == 1
    # Up to its cross-attention the first block computes for both texts at once: that is another shape.
    assert relative(velocity(expert), wanted) < 1e-5
    assert len(graphs) == 3
    # With adapters the block is not compiled.
    assert torch.equal(velocity(expert, [(adapter(), 0.5)]), adapted)
    assert len(graphs) == 3


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor_compiles_the_block(expert: Transformer) -> None:
    wanted = velocity(expert)
    torch._dynamo.reset()
    expert.compile_blocks()
    assert relative(velocity(expert), wanted) < 1e-5


def test_float8_is_within_the_step_of_its_mantissa() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * 50
    small, scale = quantised(x)
    assert small.dtype == torch.float8_e4m3fn
    # Three bits of mantissa: half a step of 1/8, or the smallest step of the format.
    error = (small.float() * scale - x).abs()
    assert bool((error <= x.abs() / 16 + scale * 2**-10).all())


@torch.no_grad()
def test_a_float8_layer_states_its_error_and_keeps_its_shape() -> None:
    linear = torch.nn.Linear(128, 64)
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1))
    small = Float8Linear(linear)
    assert small(x).shape == (3, 5, 64)
    assert 0.001 < relative(small(x), linear(x)) < 0.05
    assert torch.equal(small(torch.zeros(1, 128)), linear.bias.view(1, 64))


def test_the_blocks_in_float8_are_close_and_still_take_adapters(expert: Transformer) -> None:
    wanted, adapted = velocity(expert), velocity(expert, [(adapter(), 0.5)])
    error = to_float8(expert.module)
    assert 0 < error < 0.05
    layers = [module for module in expert.module.modules() if isinstance(module, Float8Linear)]
    assert len(layers) == 8 * len(expert.module.blocks)
    assert relative(velocity(expert), wanted) < 0.1
    assert relative(velocity(expert, [(adapter(), 0.5)]), adapted) < 0.1


def test_hosted_blocks_give_the_same_bits_with_at_most_two_on_the_device(expert: Transformer) -> None:
    wanted = velocity(expert)
    blocks = torch.nn.ModuleList(copy.deepcopy(expert.module.blocks[i % 2]) for i in range(5))
    hosted = HostedBlocks(blocks, CPU)
    homes = [{name: p.data_ptr() for name, p in block.named_parameters()} for block in blocks]
    seen = []
    for i, block in enumerate(hosted.walk()):
        seen.append(sorted(hosted.on_device))
        assert all(p.data_ptr() != homes[i][name] for name, p in block.named_parameters())
    assert seen == [[0, 1], [1, 2], [2, 3], [3, 4], [4]]
    assert hosted.on_device == set()
    assert [{name: p.data_ptr() for name, p in block.named_parameters()} for block in blocks] == homes
    arranged = Transformer(expert.module, hosted=HostedBlocks(expert.module.blocks, CPU))
    assert torch.equal(velocity(arranged), wanted)


def test_a_walk_that_is_left_early_leaves_nothing_on_the_device(expert: Transformer) -> None:
    hosted = HostedBlocks(expert.module.blocks, CPU)
    walk = hosted.walk()
    next(walk)
    walk.close()
    assert hosted.on_device == set()


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ({}, ""),
        ({"attention": "math"}, "attention=math"),
        ({"linear": "float8"}, "linear=float8"),
        ({"offload": True}, ""),
    ],
)
async def test_a_denoiser_says_its_ways_and_those_that_change_bits_change_the_fingerprint(
    serve: Serve, settings: dict[str, Any], way: str
) -> None:
    async with serve(**settings) as caller, serve() as plain:
        ours, theirs = await caller.denoise(), await plain.denoise()
        acceleration = (await caller.describe()).acceleration
    assert ours.result is not None
    assert theirs.result is not None
    assert (ours.result.fingerprint != theirs.result.fingerprint) is bool(way)
    assert torch.equal(ours.latents, theirs.latents) or way
    assert acceleration.attention == settings.get("attention", "sdpa")
    assert [one.name for one in acceleration.attention_present] == ["sdpa", "flash", "math"]
    assert acceleration.offloaded is settings.get("offload", False)
    assert acceleration.linear == settings.get("linear", "float32")
    assert (acceleration.linear_error > 0) is (acceleration.linear == "float8")


def test_an_evaluation_that_fails_leaves_no_block_on_the_device_while_its_error_is_held(expert: Transformer) -> None:
    hosted = HostedBlocks(expert.module.blocks, CPU)
    arranged = Transformer(expert.module, hosted=hosted)
    context = arranged.read(TEXT, LATENTS)

    def out_of_memory(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("none left")

    hook = expert.module.blocks[0].attn1.to_q.register_forward_hook(out_of_memory)
    with hook, pytest.raises(torch.OutOfMemoryError) as held:
        arranged(X, 900.0, context)
    assert held.value.__traceback__ is not None
    assert hosted.on_device == set()
    assert torch.equal(arranged(X, 900.0, context), Transformer(expert.module)(X, 900.0, context))


async def test_the_kernel_is_measured_at_start_where_asked(serve: Serve) -> None:
    async with serve(attention="measure") as caller:
        acceleration = (await caller.describe()).acceleration
    assert acceleration.attention in {"sdpa", "flash", "math"}
    assert all(one.seconds > 0 for one in acceleration.attention_present)


@pytest.mark.parametrize(
    "settings",
    [
        {"offload": True, "compile": True},
        {"offload": True, "engines": Path("e")},
        {"offload": True, "step_sharing": "auto"},
        {"offload": True, "experts": "swap"},
        {"experts": "swap", "compile": True},
        {"experts": "swap", "engines": Path("e")},
        {"experts": "swap", "linear": "float8"},
    ],
)
def test_options_that_exclude_each_other_are_refused(untrained: Path, settings: dict[str, Any]) -> None:
    config = DenoiserConfig(model=untrained, **settings)
    loaded = ExpertPool.load(ModelFolder(untrained), config.experts, torch.float32, CPU)
    with pytest.raises(FailedPrecondition, match="do not go together"):
        accelerate(loaded, config, CPU)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_on_a_gpu_every_kernel_float8_compiled_and_hosted_blocks_agree_with_float32(pool: ExpertPool) -> None:
    device = torch.device("cuda", 0)
    wanted = velocity(pool.experts[Expert.HIGH])

    def fresh() -> Any:
        return copy.deepcopy(pool.experts[Expert.HIGH].module).to(torch.bfloat16)

    for name in attention.present(device):
        each = Transformer(fresh().to(device))
        each.attend = attention.named(name, device)
        assert relative(velocity(each).cpu(), wanted) < 0.05, name
    compiled = Transformer(fresh().to(device))
    compiled.compile_blocks()
    assert relative(velocity(compiled).cpu(), wanted) < 0.05
    small = fresh().to(device)
    to_float8(small)
    assert relative(velocity(Transformer(small)).cpu(), wanted) < 0.1
