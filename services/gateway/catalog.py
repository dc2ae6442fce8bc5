"""What can be asked for: the models whose stages all answer, learned from the stages themselves."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from rushes.v1 import catalog_pb2, denoiser_pb2
from services.chassis.errors import InvalidRequest, Unavailable
from services.gateway.stages import Stages


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A model that every stage has loaded, the most tokens that its encoder reads, and its adapters."""

    message: catalog_pb2.Model
    max_tokens: int
    adapters: frozenset[str]


class Catalog:
    """The models at this moment. The first is the default."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def models(self) -> list[KnownModel]:
        """Every model that an encoder, a denoiser and a postprocessor have loaded, in the denoisers' order."""
        encoders = {one.model: one for one in self._stages.encoders.described()}
        postprocessors = {one.model: one for one in self._stages.postprocessors.described()}
        by_model: dict[str, list[denoiser_pb2.DescribeDenoiserResponse]] = {}
        for described in self._stages.denoisers.described():
            by_model.setdefault(described.model, []).append(described)
        return [
            KnownModel(
                message=_message(denoisers, [encoders[name].fingerprint, postprocessors[name].fingerprint]),
                max_tokens=encoders[name].max_tokens,
                adapters=frozenset.intersection(*(frozenset(one.adapters) for one in denoisers)),
            )
            for name, denoisers in by_model.items()
            if name in encoders and name in postprocessors
        ]

    def find(self, model: str) -> KnownModel:
        """The model of this id, or the default for an empty one.

        Raises `InvalidRequest` for an unknown model, `Unavailable` while no model has all its stages.
        """
        models = self.models()
        if not models:
            raise Unavailable(
                "No model has all of its stages at this moment.", reason="STAGES_UNAVAILABLE", retry_after_seconds=5.0
            )
        if not model:
            return models[0]
        for known in models:
            if known.message.id == model:
                return known
        names = ", ".join(known.message.id for known in models)
        raise InvalidRequest.of("spec.model", f"must be one of: {names}", reason="MODEL_UNKNOWN")


def _message(
    denoisers: Sequence[denoiser_pb2.DescribeDenoiserResponse], fingerprints: Sequence[str]
) -> catalog_pb2.Model:
    first = denoisers[0]
    parts = sorted({one.fingerprint for one in denoisers}) + list(fingerprints)
    return catalog_pb2.Model(
        id=first.model,
        display_name=first.display_name,
        licence=first.licence,
        demonstration=first.demonstration,
        notice=first.notice,
        defaults=first.defaults,
        limits=first.limits,
        fingerprint=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        differences=first.differences,
        presets=first.presets,
    )
