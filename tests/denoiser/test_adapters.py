"""Low-rank adapters: both key layouts, exact against merged weights, and no trace on a neighbour."""

import asyncio
import gc
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import save_file

from rushes.v1 import denoiser_pb2
from services.chassis.errors import from_rpc_error
from services.denoiser.adapter_shelf import AdapterShelf, AdapterUse
from services.denoiser.adapters import AdapterMisfit, read_adapter
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import VideoShape
from services.denoiser.transformer import Transformer
from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from tests.denoiser.adapter_files import (
    EVERYTHING,
    changed,
    diffusers_layout,
    everything,
    kohya_layout,
    merged,
    original_layout,
    original_peft_layout,
    peft_layout,
)
from tests.denoiser.caller import STEPS
from tests.denoiser.conftest import Serve

LATENTS = VideoShape(width=48, height=32, frames=5).latents(16)
X = prior(LATENTS, 3)
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(4))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)).item()


@pytest.fixture
def expert(pool: ExpertPool) -> Transformer:
    return pool.experts[Expert.HIGH]


def read(expert: Transformer, state: dict[str, torch.Tensor], path: Path) -> Any:
    save_file(state, path)
    return read_adapter(path, expert.module, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("layout", [diffusers_layout, peft_layout, original_layout, original_peft_layout, kohya_layout])
@pytest.mark.parametrize("weight", [1.0, 0.5, -0.7])
def test_an_adapter_equals_its_merged_weights(expert: Transformer, tmp_path: Path, layout: Any, weight: float) -> None:
    adapter = read(expert, layout(), tmp_path / "a.safetensors")
    adapted = expert(X, 900.0, expert.read(TEXT, LATENTS, [(adapter, weight)]))
    wanted = merged(expert, (0, weight))
    expected = wanted(X, 900.0, wanted.read(TEXT, LATENTS))
    plain = expert(X, 900.0, expert.read(TEXT, LATENTS))
    assert relative(adapted, expected) < 1e-5
    assert relative(adapted, plain) > 1e-2


@pytest.mark.parametrize("weight", [1.0, -0.6])
def test_a_file_that_changes_every_parameter_equals_its_merged_weights(
    expert: Transformer, tmp_path: Path, weight: float
) -> None:
    state, deltas = everything(expert)
    assert set(deltas) == {name for name, _ in expert.module.named_parameters()}
    adapter = read(expert, state, tmp_path / "a.safetensors")
    adapted = expert(X, 900.0, expert.read(TEXT, LATENTS, [(adapter, weight)]))
    wanted = changed(expert, {name: weight * delta for name, delta in deltas.items()})
    assert relative(adapted, wanted(X, 900.0, wanted.read(TEXT, LATENTS))) < 1e-5
    # Each of them matters: the comparison would notice one that was left out.
    for left_out in EVERYTHING.values():
        without = changed(expert, {name: weight * delta for name, delta in deltas.items() if name != left_out})
        assert relative(without(X, 900.0, without.read(TEXT, LATENTS)), adapted) > 1e-4, left_out


def test_updates_that_are_zero_throughout_are_left_out(expert: Transformer, tmp_path: Path) -> None:
    plain = read(expert, original_layout(), tmp_path / "a.safetensors")
    zeros = {
        f"diffusion_model.{name}": torch.zeros(expert.module.get_parameter(parameter).shape)
        for name, parameter in EVERYTHING.items()
        if not name.endswith((".lora", ".diff_b"))
    }
    padded = read(expert, original_layout() | zeros, tmp_path / "b.safetensors")
    assert padded.keys() == plain.keys()
    outputs = [expert(X, 900.0, expert.read(TEXT, LATENTS, [(adapter, 1.0)])) for adapter in (plain, padded)]
    assert torch.equal(*outputs)


def test_an_adapter_of_a_bfloat16_expert_is_kept_in_the_types_of_its_layers(
    expert: Transformer, tmp_path: Path
) -> None:
    module = type(expert.module).from_config(expert.module.config)
    module.load_state_dict(expert.module.state_dict())
    for name, parameter in module.named_parameters():
        kept = set(module._keep_in_fp32_modules) & set(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else torch.bfloat16)
    halved = Transformer(module.eval())
    state, deltas = everything(expert)
    save_file(state, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors", module, torch.bfloat16, torch.device("cpu"))
    assert adapter["blocks.0.attn1.to_q"].up.dtype == torch.bfloat16
    assert adapter["blocks.0.norm2"].weight.dtype == adapter[""].weight.dtype == torch.float32
    adapted = halved(X, 900.0, halved.read(TEXT, LATENTS, [(adapter, 0.2)]))
    wanted = changed(expert, {name: 0.2 * delta for name, delta in deltas.items()})
    assert relative(adapted, wanted(X, 900.0, wanted.read(TEXT, LATENTS))) < 0.05


def test_several_adapters_add_up(expert: Transformer, tmp_path: Path) -> None:
    adapters = [
        (read(expert, diffusers_layout(seed), tmp_path / f"{seed}.safetensors"), weight)
        for seed, weight in ((0, 1.0), (1, 0.3))
    ]
    wanted = merged(expert, (0, 1.0), (1, 0.3))
    adapted = expert(X, 500.0, expert.read(TEXT, LATENTS, adapters))
    assert relative(adapted, wanted(X, 500.0, wanted.read(TEXT, LATENTS))) < 1e-5


def test_a_neighbour_of_an_adapted_run_is_bit_identical(expert: Transformer, tmp_path: Path) -> None:
    alone = expert(X, 900.0, expert.read(TEXT, LATENTS))
    adapter = read(expert, diffusers_layout(), tmp_path / "a.safetensors")
    adapted, plain = expert.read(TEXT, LATENTS, [(adapter, 1.0)]), expert.read(TEXT, LATENTS)
    for _ in range(2):
        expert(X, 900.0, adapted)
        assert torch.equal(expert(X, 900.0, plain), alone)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 7)}, "to_q.lora_A"),
        ({"transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(7, 4)}, "to_q.lora_B"),
        ({"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(4, 48)}, "blocks.9"),
        ({"transformer.blocks.0.attn1.to_q.lora_A.weight": None}, "to_q.lora_B"),
        ({"transformer.blocks.0.norm1.lora_A.weight": torch.zeros(4, 48)}, "norm1"),
        ({"transformer.blocks.0.attn1.to_q.diff_b": torch.zeros(47)}, "to_q.diff_b"),
        ({"transformer.blocks.0.attn1.norm_q.diff_b": torch.zeros(48)}, "norm_q.diff_b"),
        ({"transformer.blocks.0.attn1.norm_q.lora_A.weight": torch.zeros(4, 48)}, "norm_q.lora_A"),
        ({"transformer.blocks.0.ffn.net.2.diff": torch.zeros(48, 48)}, "net.2.diff"),
        ({"transformer.blocks.0.attn1.diff_m": torch.zeros(1, 6, 48)}, "attn1.diff_m"),
        ({"transformer.blocks.0.diff_m": torch.zeros(1, 2, 48)}, "blocks.0.diff_m"),
        ({"transformer.blocks.0.attn1.to_q.lora_A.bias": torch.zeros(4)}, "lora_A.bias"),
        ({"transformer.blocks.0.attn1.to_q.dora_scale": torch.zeros(48)}, "dora_scale"),
        ({"transformer.blocks.0.attn1.to_q.alpha": torch.zeros(2)}, "to_q.alpha"),
        ({"transformer.blocks.0.attn1.to_q.alpha": torch.tensor(float("inf"))}, "to_q.alpha is not finite"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(4, 48)}, "there twice"),
        # Of the image-to-video model.
        ({"diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.zeros(4, 48)}, "k_img"),
        ({"lora_unet_blocks_0_cross_attn_k_img.lora_down.weight": torch.zeros(4, 48)}, "k_img"),
        ({"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.full((4, 48), float("nan"))}, "finite"),
        ({"unet.down.lora_A.weight": torch.zeros(4, 48)}, "unet"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_key(
    expert: Transformer, tmp_path: Path, change: dict[str, torch.Tensor | None], key: str
) -> None:
    state = {name: tensor for name, tensor in {**diffusers_layout(), **change}.items() if tensor is not None}
    with pytest.raises(AdapterMisfit, match=key):
        read(expert, state, tmp_path / "a.safetensors")


def test_a_file_that_is_no_adapter_at_all_is_refused(expert: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(AdapterMisfit, match=r"a\.safetensors"):
        read_adapter(path, expert.module, torch.float32, torch.device("cpu"))


@pytest.fixture
def adapted_model(untrained: Path, tmp_path: Path) -> Path:
    """The untrained model with adapters `style-0` (both experts), `style-1` (high only) and `wrong` in its manifest."""
    return add_adapters(Path(shutil.copytree(untrained, tmp_path / "model")), 2)


def add_adapters(folder: Path, count: int) -> Path:
    (folder / "adapters").mkdir()
    manifest = json.loads((folder / "rushes.json").read_text())
    files = {f"adapters/style-{seed}.safetensors": diffusers_layout(seed) for seed in range(count)}
    files["adapters/wrong.safetensors"] = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 7)}
    for name, state in files.items():
        save_file(state, folder / name)
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest["adapters"] = [
        {"id": Path(name).stem, "high": name, **({} if "style-1" in name else {"low": name})} for name in files
    ]
    (folder / "rushes.json").write_text(json.dumps(manifest))
    return folder


def test_an_adapter_whose_file_has_no_stated_hash_is_refused(adapted_model: Path) -> None:
    path = adapted_model / "rushes.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["adapters/style-0.safetensors"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelRefused, match="style-0"):
        ModelFolder(adapted_model)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/a.safetensors", "adapters/../../a.safetensors", "a.bin"]
)
def test_an_adapter_outside_the_folder_is_refused(adapted_model: Path, name: str) -> None:
    path = adapted_model / "rushes.json"
    manifest = json.loads(path.read_text())
    manifest["adapters"][0]["high"] = name
    manifest["files"][name] = {"sha256": "0" * 64, "size": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelRefused, match=r"adapters\.0\.high"):
        ModelFolder(adapted_model)


def test_a_changed_adapter_file_is_refused(adapted_model: Path, expert: Transformer) -> None:
    shelf = AdapterShelf(ModelFolder(adapted_model), 10**9)
    (adapted_model / "adapters" / "style-0.safetensors").write_bytes(b"other")
    with pytest.raises(ModelRefused, match="style-0"):
        shelf.take([AdapterUse(id="style-0")], Expert.HIGH, expert)


def test_each_expert_gets_its_own_file_and_weight(adapted_model: Path, expert: Transformer) -> None:
    shelf = AdapterShelf(ModelFolder(adapted_model), 10**9)
    uses = [AdapterUse(id="style-0", weight_high=0.5, weight_low=0), AdapterUse(id="style-1", weight_low=2.0)]
    assert [weight for _, weight in shelf.take(uses, Expert.HIGH, expert)] == [0.5, 1.0]
    assert shelf.take(uses, Expert.LOW, expert) == []


async def test_an_adapted_generation_changes_itself_and_not_its_neighbour(serve: Serve, adapted_model: Path) -> None:
    style = [denoiser_pb2.AdapterUse(id="style-0", weight_low=0.5)]
    async with serve(model=adapted_model, slots=2) as caller:
        alone = await caller.denoise()
        async with asyncio.TaskGroup() as group:
            adapted = group.create_task(caller.denoise(adapters=style))
            neighbour = group.create_task(caller.denoise())
        again = await caller.denoise(adapters=style)
        assert set((await caller.describe()).adapters) == {"style-0", "style-1", "wrong"}
    assert neighbour.result().bundles[-1].payload == alone.bundles[-1].payload
    assert not torch.allclose(adapted.result().latents, alone.latents)
    assert again.bundles[-1].payload == adapted.result().bundles[-1].payload


async def test_an_adapted_run_continues_only_with_its_adapters(serve: Serve, adapted_model: Path) -> None:
    style = [denoiser_pb2.AdapterUse(id="style-0")]
    async with serve(model=adapted_model) as caller:
        whole = await caller.denoise(adapters=style)
        first = await caller.denoise(adapters=style, end_step=4)
        rest = await caller.denoise(adapters=style, state=first.state, first_step=4)
        assert rest.bundles[-1].payload == whole.bundles[-1].payload
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.denoise(state=first.state, first_step=4)
    assert from_rpc_error(refused.value).reason == "STATE_MISMATCH"


@pytest.mark.parametrize(
    ("uses", "code", "reason"),
    [
        ([{"id": "nobody"}], grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_ADAPTER"),
        ([{"id": "style-0"}, {"id": "style-0"}], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([{"id": "style-0", "weight_high": float("nan")}], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([{"id": "../style-0"}], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([{"id": "wrong"}], grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_MISFIT"),
    ],
)
async def test_a_wrong_use_of_adapters_is_refused(
    serve: Serve, adapted_model: Path, uses: list[dict[str, Any]], code: grpc.StatusCode, reason: str
) -> None:
    async with serve(model=adapted_model) as caller:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.denoise(adapters=[denoiser_pb2.AdapterUse(**use) for use in uses])
        assert refused.value.code() is code
        assert from_rpc_error(refused.value).reason == reason
        assert len((await caller.denoise()).steps) == STEPS


def test_fifty_adapters_cycled_do_not_grow_memory(untrained: Path, tmp_path: Path, expert: Transformer) -> None:
    folder = add_adapters(Path(shutil.copytree(untrained, tmp_path / "model")), 50)
    shelf = AdapterShelf(ModelFolder(folder), 100_000)
    tensors = []
    for seed in range(50):
        adapters = shelf.take([AdapterUse(id=f"style-{seed}")], Expert.HIGH, expert)
        expert(X, 900.0, expert.read(TEXT, LATENTS, adapters))
        del adapters
        assert shelf.nbytes <= 100_000
        if seed in (9, 49):
            gc.collect()
            tensors.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    assert tensors[0] == tensors[1]


@pytest.mark.timeout(300)
async def test_fifty_adapters_are_laid_on_and_taken_off_hot_and_leave_the_base_as_it_was(
    serve: Serve, untrained: Path, tmp_path: Path
) -> None:
    folder = add_adapters(Path(shutil.copytree(untrained, tmp_path / "model")), 50)
    short: dict[str, Any] = {"sampling": {"steps": 2}, "shape": {"num_frames": 5}}

    def held() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    async with serve(model=folder, adapter_cache_bytes=100_000) as caller:
        plain = await caller.denoise(**short)
        made, tensors = [], []
        for seed in range(50):
            use = denoiser_pb2.AdapterUse(id=f"style-{seed}")
            made.append((await caller.denoise(**short, adapters=[use])).bundles[-1].payload)
            if seed in (9, 49):
                tensors.append(held())
        again = await caller.denoise(**short)
    # Each is another clip, and none left a trace.
    assert len({plain.bundles[-1].payload, *made}) == 51
    assert again.bundles[-1].payload == plain.bundles[-1].payload
    assert tensors[0] == tensors[1]
