"""The presets of a model: `draft`, `standard` and `pro`, and what its manifest makes of them."""

from typing import Final

from services.model.manifest import Manifest
from services.model.presets import PresetAdapter, PresetEntry

STANDARD: Final = "standard"
_PRO_STEPS: Final = 1.25
"""Wan 2.1's own 50 steps to Wan 2.2's 40."""


def presets(manifest: Manifest) -> tuple[PresetEntry, ...]:
    """Every preset of the model, those of its manifest in place of the built-in ones of their names.

    `standard` differs in nothing from the model's defaults. `draft` is the few-step mode of the manifest's distilled
    adapter pair (Euler, shift 5, no guidance: ModelTC/Wan2.2-Lightning), or half the steps where there is none.
    """
    own = {entry.name: entry for entry in manifest.presets}
    built_in = (
        _draft(manifest),
        PresetEntry(name=STANDARD, description="The model's own defaults."),
        PresetEntry(
            name="pro",
            description="A quarter more steps.",
            steps=min(round(_PRO_STEPS * manifest.defaults.steps), manifest.limits.max_steps),
        ),
    )
    return (*(own.pop(entry.name, entry) for entry in built_in), *own.values())


def _draft(manifest: Manifest) -> PresetEntry:
    for adapter in manifest.adapters:
        if adapter.distilled_steps is not None:
            return PresetEntry(
                name="draft",
                description=f"{adapter.distilled_steps} steps of the distilled adapter {adapter.id}, without guidance.",
                steps=adapter.distilled_steps,
                solver="euler",
                sigma_rule="wan",
                flow_shift=5.0,
                guidance_scale_high=1.0,
                guidance_scale_low=1.0,
                adapters=(PresetAdapter(id=adapter.id),),
            )
    return PresetEntry(name="draft", description="Half the steps.", steps=max(1, manifest.defaults.steps // 2))
