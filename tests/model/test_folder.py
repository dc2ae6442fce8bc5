"""What a model folder must be, and how a wrong one is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.untrained import write_untrained
from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from services.model.manifest import WAN21_LATENT_RGB, WAN_NEGATIVE_PROMPT, Manifest, Source


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(folder: Path, component: str = "transformer") -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        ModelFolder(folder).component(component)
    return caught.value


def test_a_component_knows_its_class_configuration_and_shards(untrained: Path) -> None:
    component = ModelFolder(untrained).component("transformer")
    assert component.class_name == "WanTransformer3DModel"
    assert component.config["num_layers"] == 2
    assert [shard.name for shard in component.shards] == ["diffusion_pytorch_model.safetensors"]


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"model_index\.json: is missing"):
        ModelFolder(tmp_path)


def test_a_component_that_the_index_does_not_name_is_refused(untrained: Path) -> None:
    assert refused(untrained, "image_encoder").file == "model_index.json"


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_a_pickle_beside_the_weights_is_refused(folder: Path, suffix: str) -> None:
    (folder / "vae" / f"weights{suffix}").write_bytes(b"x")
    assert refused(folder, "vae").file == f"vae/weights{suffix}"


def test_a_wrong_class_in_the_index_is_refused(folder: Path) -> None:
    edit(folder / "model_index.json", lambda index: index.update(transformer=["diffusers", "UNet2DModel"]))
    assert "UNet2DModel" in refused(folder).rule


def test_a_configuration_of_another_class_is_refused(folder: Path) -> None:
    edit(folder / "vae" / "config.json", lambda config: config.update(_class_name="AutoencoderKL"))
    assert refused(folder, "vae").file == "vae/config.json"


def test_a_file_with_another_hash_than_the_manifest_says_is_refused(folder: Path) -> None:
    shard = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    error = refused(folder)
    assert error.file == "transformer/diffusion_pytorch_model.safetensors"
    assert "SHA-256" in error.rule


def test_a_truncated_file_is_refused_by_its_size(folder: Path) -> None:
    shard = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert "bytes" in refused(folder).rule


def test_a_missing_shard_is_named(folder: Path) -> None:
    part = folder / "transformer"
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}})
    )
    assert refused(folder).file == "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/weights.safetensors", "weights.bin"])
def test_an_index_that_points_out_of_its_folder_is_refused(folder: Path, name: str) -> None:
    part = folder / "transformer"
    (part / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "no shard" in refused(folder).rule


def test_the_manifest_states_defaults_and_where_they_come_from(untrained: Path) -> None:
    manifest = ModelFolder(untrained).manifest
    assert manifest.id == "rushes-untrained"
    assert manifest.demonstration
    assert manifest.text.max_length == 16
    stated = {name: source for name, source in manifest.sources.items() if not name.startswith("guidance_timestep")}
    assert set(stated.values()) == {Source.MANIFEST}


def test_without_a_manifest_the_reference_wins_over_the_converted_scheduler(tmp_path: Path) -> None:
    folder = write_untrained(tmp_path / "model", manifest=False)
    manifest = Manifest.load(folder)
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["flow_shift"] == 3.0
    defaults = manifest.defaults
    assert (defaults.flow_shift, defaults.steps, defaults.boundary_ratio) == (12.0, 40, 0.875)
    assert (defaults.guidance_scale_high, defaults.guidance_scale_low) == (4.0, 3.0)
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (1280, 720, 81, 16)
    assert defaults.negative_prompt == WAN_NEGATIVE_PROMPT
    assert manifest.text.max_length == 512
    assert manifest.latent_rgb is WAN21_LATENT_RGB
    assert set(manifest.sources.values()) == {Source.WAN_REFERENCE}


def test_a_manifest_without_a_flow_shift_takes_the_schedulers(folder: Path) -> None:
    edit(folder / "rushes.json", lambda manifest: manifest["defaults"].pop("flow_shift"))
    edit(folder / "scheduler" / "scheduler_config.json", lambda config: config.update(flow_shift=5.0))
    manifest = Manifest.load(folder)
    assert manifest.defaults.flow_shift == 5.0
    assert manifest.sources["flow_shift"] is Source.SCHEDULER_CONFIG
    assert manifest.sources["steps"] is Source.MANIFEST


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("defaults", "steps", 0),
        ("defaults", "flow_shift", float("nan")),
        ("defaults", "solver", "heun"),
        ("defaults", "width", 100),
        ("limits", "max_frames", -1),
        ("defaults", "unheard_of", 1),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(folder: Path, section: str, field: str, value: object) -> None:
    edit(folder / "rushes.json", lambda manifest: manifest[section].update({field: value}))
    with pytest.raises(ModelRefused) as caught:
        ModelFolder(folder)
    assert caught.value.file == "rushes.json"
    assert f"{section}.{field}" in caught.value.rule


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one = ModelFolder(write_untrained(tmp_path / "one", seed=1)).fingerprint
    again = ModelFolder(write_untrained(tmp_path / "again", seed=1)).fingerprint
    other = ModelFolder(write_untrained(tmp_path / "other", seed=2)).fingerprint
    assert one == again != other


def test_the_fingerprint_follows_the_weights_without_a_manifest_too(tmp_path: Path) -> None:
    one = ModelFolder(write_untrained(tmp_path / "one", seed=1, manifest=False)).fingerprint
    other = ModelFolder(write_untrained(tmp_path / "other", seed=2, manifest=False)).fingerprint
    assert one != other


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    digests = [
        {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }
        for folder in (write_untrained(tmp_path / "a", seed=3), write_untrained(tmp_path / "b", seed=3))
    ]
    assert digests[0] == digests[1]
