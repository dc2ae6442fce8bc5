"""What to make, from plain Python values."""

from collections.abc import Mapping, Sequence

from rushes.client.finishing import artifact_kinds, choice, put
from rushes.v1.finishing_pb2 import FinishPlan, InspectionPolicy
from rushes.v1.generation_pb2 import GenerationSpec
from rushes.v1.postprocess_pb2 import VideoSettings
from rushes.v1.sampling_pb2 import SigmaRule, Solver, StepCache

SOLVERS = {"unipc": Solver.SOLVER_UNIPC, "euler": Solver.SOLVER_EULER, "dpmpp_2m": Solver.SOLVER_DPMPP_2M}
STEP_CACHES = {"off": StepCache.STEP_CACHE_OFF, "first_block": StepCache.STEP_CACHE_FIRST_BLOCK}
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
    preset: str | None = None,
    steps: int | None = None,
    solver: str | None = None,
    sigma_rule: str | None = None,
    flow_shift: float | None = None,
    boundary_ratio: float | None = None,
    guidance_scale_high: float | None = None,
    guidance_scale_low: float | None = None,
    guidance_timestep_min: float | None = None,
    guidance_timestep_max: float | None = None,
    step_cache: str | None = None,
    step_cache_threshold: float | None = None,
    reuse_prefix: bool = False,
    declare_prompt: bool = False,
    preview_every_steps: int | None = None,
    preview_max_edge: int | None = None,
    crf: int | None = None,
    finish: FinishPlan | None = None,
    video: VideoSettings | None = None,
    artifacts: Sequence[str] = (),
    inspection: InspectionPolicy | None = None,
) -> GenerationSpec:
    """A request for a clip; what is None takes the model's default.

    Sizes are pixels (multiples of 16) and frames (4k + 1). `solver` is one of `SOLVERS`, `sigma_rule` of `SIGMA_RULES`,
    `step_cache` of `STEP_CACHES`; guidance timesteps are 0 to 1000. `declare_prompt` writes the prompt into the signed
    manifest of the finished file.
    `finish` and `video` are made by `finish_plan` and `video_settings`; `artifacts` are names of
    `rushes.client.finishing.ARTIFACTS`, by default a poster and a contact sheet. `inspection` is made by
    `inspection_policy`.
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
        "preset": preset,
    }
    for field, value in top.items():
        put(spec, "", field, value)
    spec.reuse_prefix = reuse_prefix
    spec.declare_prompt = declare_prompt
    sampling: Mapping[str, float | None] = {
        "solver": choice("sampling.solver", solver, SOLVERS),
        "sigma_rule": choice("sampling.sigma_rule", sigma_rule, SIGMA_RULES),
        "steps": steps,
        "flow_shift": flow_shift,
        "boundary_ratio": boundary_ratio,
        "guidance_scale_high": guidance_scale_high,
        "guidance_scale_low": guidance_scale_low,
        "guidance_timestep_min": guidance_timestep_min,
        "guidance_timestep_max": guidance_timestep_max,
        "step_cache": choice("sampling.step_cache", step_cache, STEP_CACHES),
        "step_cache_threshold": step_cache_threshold,
    }
    for field, number in sampling.items():
        put(spec.sampling, "sampling.", field, number)
    for field, value in {"every_steps": preview_every_steps, "max_edge": preview_max_edge}.items():
        put(spec.previews, "previews.", field, value)
    if video is not None:
        spec.video.CopyFrom(video)
    put(spec.video, "video.", "crf", crf)
    if finish is not None and finish.ByteSize():
        spec.finish.CopyFrom(finish)
    if inspection is not None:
        spec.inspection.CopyFrom(inspection)
    spec.artifacts.extend(artifact_kinds(artifacts))
    return spec
