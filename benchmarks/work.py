"""The clip that the relay and the reference both make."""

from dataclasses import dataclass, replace
from pathlib import Path

from services.model.manifest import Manifest

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny" / "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One clip: the settings both sides are given, none left to a default."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance_scale_high: float
    guidance_scale_low: float
    text_length: int
    seed: int

    def with_frames(self, num_frames: int) -> "Work":
        """The same clip with another length."""
        return replace(self, num_frames=num_frames)


def embedded_work() -> Work:
    """The embedded model's default clip."""
    manifest = Manifest.load(EMBEDDED_MODEL)
    defaults = manifest.defaults
    return Work(
        prompt="a red circle moves left across a blue background",
        negative_prompt=defaults.negative_prompt,
        width=defaults.width,
        height=defaults.height,
        num_frames=defaults.num_frames,
        fps=defaults.fps,
        steps=defaults.steps,
        guidance_scale_high=defaults.guidance_scale_high,
        guidance_scale_low=defaults.guidance_scale_low,
        text_length=manifest.text.max_length,
        seed=7,
    )
