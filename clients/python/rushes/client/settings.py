"""What to make, from plain Python values."""

from collections.abc import Mapping

from rushes.client.errors import FieldViolation, InvalidRequest
from rushes.v1.generation_pb2 import GenerationSpec
from rushes.v1.postprocess_pb2 import VideoSettings
from rushes.v1.sampling_pb2 import PreviewSettings, SamplingSettings, SigmaRule, Solver

SOLVERS = {"unipc": Solver.SOLVER_UNIPC, "euler": Solver.SOLVER_EULER, "dpmpp_2m": Solver.SOLVER_DPMPP_2M}
SIGMA_RULES = {"wan": SigmaRule.SIGMA_RULE_WAN, "diffusers": SigmaRule.SIGMA_RULE_DIFFUSERS}


def generation_spec(
    prompt: str,
    *,
    negative_prompt: str | None = None,
    model: str | None = None,
    width: int | None = None,
    height: int | None = None,
    num_frames: int | None = None,
    fps: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    sigma_rule: str | None = None,
    flow_shift: float | None = None,
    boundary_ratio: float | None = None,
    guidance_scale_high: float | None = None,
    guidance_scale_low: float | None = None,
    preview_every_steps: int | None = None,
    preview_max_edge: int | None = None,
    crf: int | None = None,
) -> GenerationSpec:
    """A request for a clip; what is None takes the model's default.

    Sizes are pixels (multiples of 16) and frames (4k + 1). `solver` is one of `SOLVERS`, `sigma_rule` of `SIGMA_RULES`.
    Raises `InvalidRequest` for a value that the wire cannot carry; all other rules are the server's.
    """
    spec = GenerationSpec()
    top: Mapping[str, str | int | None] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "model": model,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "fps": fps,
        "seed": seed,
    }
    for field, value in top.items():
        _put(spec, "", field, value)
    sampling: Mapping[str, float | None] = {
        "solver": _choice("sampling.solver", solver, SOLVERS),
        "sigma_rule": _choice("sampling.sigma_rule", sigma_rule, SIGMA_RULES),
        "steps": steps,
        "flow_shift": flow_shift,
        "boundary_ratio": boundary_ratio,
        "guidance_scale_high": guidance_scale_high,
        "guidance_scale_low": guidance_scale_low,
    }
    for field, number in sampling.items():
        _put(spec.sampling, "sampling.", field, number)
    for field, value in {"every_steps": preview_every_steps, "max_edge": preview_max_edge}.items():
        _put(spec.previews, "previews.", field, value)
    _put(spec.video, "video.", "crf", crf)
    return spec


def _put(
    message: GenerationSpec | SamplingSettings | PreviewSettings | VideoSettings,
    prefix: str,
    field: str,
    value: str | float | None,
) -> None:
    if value is None:
        return
    try:
        setattr(message, field, value)
    except (ValueError, TypeError) as unfit:
        raise InvalidRequest(
            f"{prefix}{field}: {unfit}",
            reason="INVALID_ARGUMENT",
            violations=(FieldViolation(field=prefix + field, rule="must fit the field's type and range"),),
        ) from None


def _choice(field: str, name: str | None, values: Mapping[str, int]) -> int | None:
    if name is None:
        return None
    if name not in values:
        rule = f"must be one of {', '.join(values)}"
        raise InvalidRequest(
            f"{field}: {rule}", reason="INVALID_ARGUMENT", violations=(FieldViolation(field=field, rule=rule),)
        )
    return values[name]
