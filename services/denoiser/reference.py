"""Start-up self-check: where does the loaded model differ from Wan2.2-T2V-A14B's reference implementation?"""

from collections.abc import Iterator
from dataclasses import dataclass

from services.denoiser.experts import Expert
from services.model.folder import ModelFolder
from services.model.manifest import Defaults, TextLimits, scheduler_flow_shift

_CHECKED = (
    "flow_shift",
    "boundary_ratio",
    "steps",
    "solver",
    "sigma_rule",
    "guidance_scale_high",
    "guidance_scale_low",
    "negative_prompt",
    "fps",
)
# Wan-Video/Wan2.2 `wan/modules/vae2_1.py`.
_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_ROPE_SPLIT = (44, 42, 42)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One point in which the model differs: `reference` is Wan's value, `actual` the one in force, both as text."""

    field: str
    reference: str
    actual: str


def differences(folder: ModelFolder) -> tuple[Difference, ...]:
    """Every checked point in which the model in `folder` is not Wan's reference.

    Defaults in force, the length that text is padded to, the split of rotary channels over time, height and width, the
    statistics of the VAE's latents; and a boundary or flow shift of the configuration files that is not in force.
    """
    return tuple(_differences(folder))


def _differences(folder: ModelFolder) -> Iterator[Difference]:
    reference, actual = Defaults(), folder.manifest.defaults
    for field in _CHECKED:
        yield from _compared(field, getattr(reference, field), getattr(actual, field))
    yield from _compared("text.max_length", TextLimits().max_length, folder.manifest.text.max_length)
    shift = scheduler_flow_shift(folder.path)
    if shift is not None:
        yield from _compared("scheduler.flow_shift", reference.flow_shift, shift)
    if folder.has(Expert.LOW) and folder.boundary_ratio is not None:
        yield from _compared("model_index.boundary_ratio", reference.boundary_ratio, folder.boundary_ratio)
    transformer = folder.component(Expert.HIGH, verify=False).config if folder.has(Expert.HIGH) else {}
    yield from _compared("rope_split", _ROPE_SPLIT, rope_split(int(transformer.get("attention_head_dim", 128))))
    if folder.has("vae"):
        vae = folder.component("vae", verify=False).config
        yield from _compared("vae.latents_mean", _LATENTS_MEAN, tuple(vae.get("latents_mean", _LATENTS_MEAN)))
        yield from _compared("vae.latents_std", _LATENTS_STD, tuple(vae.get("latents_std", _LATENTS_STD)))


def rope_split(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width: h = w = 2 floor(d / 6), t the rest."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _compared(field: str, reference: object, actual: object) -> Iterator[Difference]:
    if actual != reference:
        yield Difference(field=field, reference=str(reference), actual=str(actual))
