"""Which model folder `--model` means."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from rushes.cli.refusal import CommandRefused

INDEX_FILE = "model_index.json"
EMBEDDED = "rushes-tiny"
UNTRAINED = "untrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """A model folder; `missing` is True for the untrained stand-in, which is written before its first use."""

    path: Path
    missing: bool = False


def choose_model(name: str | None, state: Path) -> ModelChoice:
    """The folder that a path, the embedded model's id, or a repository id in the Hugging Face cache names.

    None is the embedded model, or where that is not part of this copy an untrained model of the same classes. Nothing
    is ever fetched from a network. Raises `CommandRefused`.
    """
    if name is None or name == EMBEDDED:
        embedded = embedded_folder()
        if embedded is not None:
            return ModelChoice(path=embedded)
        if name is None:
            return _untrained(state)
        raise CommandRefused("--model", "the embedded model's weights are not part of this copy")
    if name == UNTRAINED:
        return _untrained(state)
    path = Path(name)
    if (path / INDEX_FILE).is_file():
        return ModelChoice(path=path.resolve())
    if path.is_dir():
        raise CommandRefused("--model", f"{name} has no {INDEX_FILE}: it is not a model in diffusers layout")
    cached = _cached(name) if name.count("/") == 1 else None
    if cached is not None:
        return ModelChoice(path=cached)
    hint = f"; `hf download {name}` fetches it" if name.count("/") == 1 and not name.startswith((".", "/", "~")) else ""
    raise CommandRefused("--model", f"{name} is neither a folder nor a known model{hint}")


def embedded_folder() -> Path | None:
    """The embedded model's folder, if its weights are here."""
    package = importlib.util.find_spec("models")
    for place in package.submodule_search_locations or () if package else ():
        folder = Path(place) / "tiny" / "weights"
        if (folder / INDEX_FILE).is_file():
            return folder
    return None


def ensure_written(choice: ModelChoice) -> None:
    """Write the untrained stand-in if it is wanted and not there; takes seconds, since it imports the model classes."""
    if not choice.missing:
        return
    from models.untrained import write_untrained  # noqa: PLC0415 - it imports torch

    unfinished = choice.path.with_name(choice.path.name + ".part")
    write_untrained(unfinished)
    unfinished.replace(choice.path)


def _untrained(state: Path) -> ModelChoice:
    path = state / "models" / UNTRAINED
    return ModelChoice(path=path, missing=not (path / INDEX_FILE).is_file())


def _cached(repository: str) -> Path | None:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - part of the model extra, not of the light client
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415 - as above
    except ImportError:
        return None
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if (folder / INDEX_FILE).is_file() else None


if __name__ == "__main__":
    ensure_written(ModelChoice(path=Path(sys.argv[1]), missing=True))
