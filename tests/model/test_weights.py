"""Weights are loaded completely and exactly, or not at all."""

import json
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import UMT5EncoderModel

from models.untrained import write_hollow
from services.model.errors import ModelRefused
from services.model.folder import Component, ModelFolder
from services.model.weights import check_complete, empty_module, load_module, real_weights

CLASSES: dict[str, type[nn.Module]] = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
}
SHARD = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "model"))


def changed(folder: Path, **tensors: torch.Tensor | None) -> Component:
    """The transformer with some of its tensors replaced, or left out where None."""
    path = folder / "transformer" / SHARD
    state = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    return ModelFolder(folder).component("transformer", verify=False)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_module_is_what_its_own_library_loads(untrained: Path, name: str, dtype: torch.dtype) -> None:
    ours = load_module(ModelFolder(untrained).component(name), CLASSES[name], dtype, "cpu")
    theirs = CLASSES[name].from_pretrained(untrained / name, torch_dtype=dtype)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for key, tensor in ours.state_dict().items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key
    for (key, buffer), (_, wanted) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), key
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_what_the_class_keeps_in_float32_stays_so_in_bfloat16(untrained: Path) -> None:
    module = load_module(ModelFolder(untrained).component("transformer"), WanTransformer3DModel, torch.bfloat16, "cpu")
    assert module.blocks[0].scale_shift_table.dtype == torch.float32
    assert module.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert module.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_modules_that_are_loaded_at_once_leave_nothing_behind(untrained: Path) -> None:
    folder = ModelFolder(untrained)

    def load(name: str) -> bool:
        module = load_module(folder.component(name), CLASSES[name], torch.float32, torch.device("cpu"))
        return any(parameter.is_meta for parameter in module.parameters())

    with ThreadPoolExecutor(len(CLASSES)) as threads:
        assert not any(threads.map(load, [*CLASSES] * 6))
    assert not nn.Linear(1, 1).weight.is_meta


def test_a_missing_key_is_named(folder: Path) -> None:
    component = changed(folder, proj_out__bias=None)
    with pytest.raises(ModelRefused, match=r"proj_out\.bias"):
        load_module(component, WanTransformer3DModel, torch.float32, "cpu")


def test_an_extra_key_is_named(folder: Path) -> None:
    component = changed(folder, surprise=torch.zeros(1))
    with pytest.raises(ModelRefused, match=r"transformer/diffusion.*surprise"):
        load_module(component, WanTransformer3DModel, torch.float32, "cpu")


def test_a_misshapen_key_is_named(folder: Path) -> None:
    component = changed(folder, proj_out__bias=torch.zeros(3))
    with pytest.raises(ModelRefused, match=r"proj_out\.bias has shape \(3,\)"):
        load_module(component, WanTransformer3DModel, torch.float32, "cpu")


def test_an_integer_tensor_is_refused(folder: Path) -> None:
    component = changed(folder, proj_out__bias=torch.zeros(64, dtype=torch.int32))
    with pytest.raises(ModelRefused, match="I32"):
        load_module(component, WanTransformer3DModel, torch.float32, "cpu")


@pytest.mark.parametrize("lie", ["offsets", "length", "garbage"])
def test_a_header_that_lies_is_refused(folder: Path, lie: str) -> None:
    path = folder / "transformer" / SHARD
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if lie == "offsets":
        header["proj_out.bias"]["data_offsets"][1] += 10_000_000
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    elif lie == "length":
        content = (2**62).to_bytes(8, "little") + content[8:]
    else:
        content = content[:8] + b"\xff" * length + content[8 + length :]
    path.write_bytes(content)
    component = ModelFolder(folder).component("transformer", verify=False)
    with pytest.raises(ModelRefused, match="no usable safetensors file"):
        load_module(component, WanTransformer3DModel, torch.float32, "cpu")


def test_shards_are_put_together(folder: Path) -> None:
    part = folder / "transformer"
    state = load_file(part / SHARD)
    names = sorted(state)
    files = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")
    weight_map = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        save_file({name: state[name] for name in names if weight_map[name] == file}, part / file)
    (part / SHARD).unlink()
    (part / f"{SHARD}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    module = load_module(ModelFolder(folder).component("transformer"), WanTransformer3DModel, torch.float32, "cpu")
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_key_in_two_shards_is_refused(folder: Path) -> None:
    part = folder / "transformer"
    files = ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
    for file in files:
        shutil.copy(part / SHARD, part / file)
    (part / SHARD).unlink()
    (part / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": files[0], "y": files[1]}}))
    with pytest.raises(ModelRefused, match="in another shard too"):
        check_complete(ModelFolder(folder).component("transformer"), WanTransformer3DModel)


def test_the_full_a14b_configuration_is_complete_without_its_memory(tmp_path: Path) -> None:
    folder = ModelFolder(write_hollow(tmp_path / "a14b"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for expert in ("transformer", "transformer_2"):
        component = folder.component(expert)
        assert len(component.shards) > 1
        assert check_complete(component, WanTransformer3DModel) == 14_288_491_584
    assert check_complete(folder.component("vae"), AutoencoderKLWan) == 126_892_531
    assert check_complete(folder.component("text_encoder"), UMT5EncoderModel) == 6_731_059_200
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 1_000_000
    assert len(folder.fingerprint) == 16


def test_a_shortened_expert_is_not_complete(tmp_path: Path) -> None:
    folder = write_hollow(tmp_path / "a14b", layers=2)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(ModelRefused, match=r"blocks\.2\."):
        check_complete(ModelFolder(folder).component("transformer"), WanTransformer3DModel)


def test_a_module_built_beside_a_loader_of_empty_ones_has_its_weights(folder: Path) -> None:
    component = ModelFolder(folder).component("transformer")

    def build(_: int) -> bool:
        with real_weights():
            return nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))[0].weight.is_meta

    with ThreadPoolExecutor(2) as threads:
        empties = [threads.submit(empty_module, component, WanTransformer3DModel) for _ in range(20)]
        assert not any(threads.map(build, range(100)))
        assert all(empty.result().proj_out.weight.is_meta for empty in empties)
