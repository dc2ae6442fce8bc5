"""A model in diffusers layout on disk: which components it has, from which files, and its fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from services.model.errors import ModelRefused
from services.model.manifest import MANIFEST_FILE, Manifest

INDEX_FILE = "model_index.json"
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "transformer": "WanTransformer3DModel",
        "transformer_2": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
    }
)
"""The class of each component with weights; `transformer` is the high-noise expert, `transformer_2` the low-noise."""

_SAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One component of a model folder: its class, its configuration and the safetensors files that hold its weights."""

    name: str
    class_name: str
    config: Mapping[str, Any]
    shards: tuple[Path, ...]
    path: Path

    def relative(self, file: Path) -> str:
        """`file` as the operator knows it: relative to the model folder."""
        return file.relative_to(self.path.parent).as_posix()


class ModelFolder:
    """A diffusers-layout folder, opened for reading.

    Raises `ModelRefused` where the folder, its index or its manifest cannot be used. Weights are read by
    `services.model.weights`; a component's files are checked when that component is asked for, so that a process only
    needs the parts that it serves.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.index = _read_object(self.path, self.path / INDEX_FILE)
        self.manifest = Manifest.load(self.path)

    def has(self, name: str) -> bool:
        """Whether the model index names the component `name`."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None

    @property
    def boundary_ratio(self) -> float | None:
        """The boundary that the model index states; the one in force is the manifest's."""
        ratio = self.index.get("boundary_ratio")
        return float(ratio) if ratio is not None else None

    def component(self, name: str, *, verify: bool = True) -> Component:
        """The component `name`, with its shards found and, where the manifest lists them, their hashes checked.

        Raises `ModelRefused` naming the file: no such component, wrong class, pickled weights beside it, a missing
        shard, a file of another size or hash than the manifest says. `verify=False` leaves the hashes out.
        """
        if not self.has(name):
            raise ModelRefused(INDEX_FILE, f"names no component {name}")
        class_name = str(self.index[name][1])
        if name in CLASSES and class_name != CLASSES[name]:
            raise ModelRefused(INDEX_FILE, f"{name} is a {class_name}, not a {CLASSES[name]}")
        folder = self.path / name
        config = _read_object(self.path, folder / "config.json")
        stated = config.get("_class_name") or next(iter(config.get("architectures") or []), class_name)
        if stated != class_name:
            raise ModelRefused(f"{name}/config.json", f"is for a {stated}, not a {class_name}")
        for file in sorted(folder.iterdir()):
            if file.suffix in PICKLED:
                raise ModelRefused(f"{name}/{file.name}", "is a pickle; only safetensors weights are loaded")
        component = Component(
            name=name, class_name=class_name, config=MappingProxyType(config), shards=_shards(folder), path=folder
        )
        if verify:
            self._check_hashes(component)
        return component

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights, their configurations and the text length: 16 hexadecimal digits.

        A shard counts with the hash that the manifest states, otherwise with its header and ends, which tells two
        trainings apart without reading 126 GB. Defaults, limits and adapters of the manifest do not count.
        """
        digest = hashlib.sha256(str(self.manifest.text.max_length).encode())
        parts = [self.path / name for name in sorted(self.index) if self.has(name)]
        for file in [self.path / INDEX_FILE, *(file for part in parts for file in sorted(part.glob("*.json")))]:
            digest.update(file.relative_to(self.path).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        for shard in (file for part in parts for file in sorted(part.glob("*.safetensors"))):
            name = shard.relative_to(self.path).as_posix()
            entry = self.manifest.files.get(name)
            digest.update(name.encode() + b"\0" + (bytes.fromhex(entry.sha256) if entry else _sample(shard)))
        return digest.hexdigest()[:16]

    def checked_file(self, name: str) -> Path:
        """The file `name` of the manifest, its size and hash checked. Raises `ModelRefused`."""
        path = self.path / name
        if name not in self.manifest.files or not path.is_file():
            raise ModelRefused(name, "is missing")
        self._check_hash(path, name)
        return path

    def _check_hashes(self, component: Component) -> None:
        for shard in component.shards:
            name = component.relative(shard)
            if name in self.manifest.files:
                self._check_hash(shard, name)

    def _check_hash(self, file: Path, name: str) -> None:
        entry = self.manifest.files[name]
        if file.stat().st_size != entry.size:
            raise ModelRefused(name, f"has {file.stat().st_size} bytes, not the {entry.size} of {MANIFEST_FILE}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                raise ModelRefused(name, f"has another SHA-256 than {MANIFEST_FILE} says")


def _read_object(root: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelRefused(name, "is missing") from None
    except (OSError, ValueError) as unreadable:
        raise ModelRefused(name, f"is not readable JSON: {unreadable}") from unreadable
    if not isinstance(content, dict):
        raise ModelRefused(name, "must be a JSON object")
    return content


def _shards(folder: Path) -> tuple[Path, ...]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        found = tuple(sorted(folder.glob("*.safetensors")))
        if len(found) != 1:
            raise ModelRefused(folder.name, f"holds {len(found)} safetensors files and no index")
        return found
    if len(indexes) > 1:
        raise ModelRefused(f"{folder.name}/{indexes[1].name}", "is a second index")
    weight_map = _read_object(folder.parent, indexes[0]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelRefused(f"{folder.name}/{indexes[0].name}", "has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelRefused(f"{folder.name}/{indexes[0].name}", f"names {name!r}, which is no shard's file name")
        if not (folder / name).exists():
            raise ModelRefused(f"{folder.name}/{name}", "is missing")
    return tuple(folder / name for name in names)


def _sample(shard: Path) -> bytes:
    size = shard.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with shard.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(min(length, 100_000_000) + _SAMPLE_BYTES))
        stream.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(stream.read(_SAMPLE_BYTES))
    return digest.digest()
