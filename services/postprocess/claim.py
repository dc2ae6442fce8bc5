"""What the C2PA manifest of a file says: a trained model made it, which one, and by which mark to find it."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from services.postprocess.provenance import SOURCE_TYPE, Maker, Making

GENERATION_LABEL: Final = "rushes.generation"
"""Label of the assertion that holds what C2PA has no words for."""

MARK_ALGORITHM: Final = "rushes.mark.1"
"""How the soft binding names the watermark: a private name, not one of C2PA's list of algorithms."""


def mark_text(mark_id: int) -> str:
    """A watermark's id as the manifest and the command line write it: 16 hexadecimal digits."""
    return f"{mark_id:016x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """All that is claimed of the files of the clip with the number `clip`.

    `mark_id` is what the watermark carries, if there is one; `development` says that nobody vouches for the signer.
    """

    maker: Maker
    clip: str
    development: bool
    making: Making = field(default_factory=Making)
    mark_id: int | None = None

    def definition(self, *, title: str, content_type: str) -> dict[str, Any]:
        """The manifest's definition for the file called `title`, as the C2PA library takes it."""
        agent = {"name": "Rushes", "version": _version()}
        actions: list[dict[str, Any]] = [
            {
                "action": "c2pa.created",
                "digitalSourceType": SOURCE_TYPE,
                "softwareAgent": agent,
                "description": f"Made by the text-to-video model {self.maker.model}.",
            }
        ]
        assertions: list[dict[str, Any]] = []
        if self.mark_id is not None:
            actions.append({"action": "c2pa.watermarked.bound", "softwareAgent": agent})
            binding = {"alg": MARK_ALGORITHM, "blocks": [{"scope": {}, "value": mark_text(self.mark_id)}]}
            assertions.append({"label": "c2pa.soft-binding", "data": binding})
        return {
            "claim_generator_info": [agent],
            "title": title,
            "format": content_type,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": actions}},
                *assertions,
                {"label": GENERATION_LABEL, "data": self._generation()},
            ],
        }

    def _generation(self) -> dict[str, Any]:
        making = self.making
        told = {
            "producer": self.maker.producer,
            "produce_id": self.clip,
            "model": self.maker.model,
            "model_fingerprint": self.maker.fingerprint,
            "certificate": "development" if self.development else "operator",
            "generation_id": making.generation_id,
            # As text: JSON readers keep integers exact to 53 bits only.
            "seed": "" if making.seed is None else str(making.seed),
            "settings_sha256": making.settings_sha256,
            "prompt": making.prompt,
        }
        return {name: value for name, value in told.items() if value}


def _version() -> str:
    try:
        return version("rushes")
    except PackageNotFoundError:
        return "0"
