"""The settings of one run of the denoising loop."""

from dataclasses import dataclass

from services.denoiser.guidance import Guidance
from services.denoiser.schedule import Schedule, SigmaRule, Solver, make_schedule
from services.model.manifest import Defaults


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What shapes a run besides clip size, seed and text. `boundary_ratio` 0 uses the high-noise expert throughout.

    `step_cache_threshold`: relative change below which a step may be answered from the step before; None: never.
    """

    solver: Solver
    sigma_rule: SigmaRule
    steps: int
    flow_shift: float
    boundary_ratio: float
    guidance: Guidance
    step_cache_threshold: float | None = None

    @classmethod
    def of(cls, defaults: Defaults) -> "Settings":
        """A model's defaults."""
        return cls(
            solver=Solver(defaults.solver),
            sigma_rule=SigmaRule(defaults.sigma_rule),
            steps=defaults.steps,
            flow_shift=defaults.flow_shift,
            boundary_ratio=defaults.boundary_ratio,
            guidance=Guidance(
                high=defaults.guidance_scale_high,
                low=defaults.guidance_scale_low,
                timestep_min=defaults.guidance_timestep_min,
                timestep_max=defaults.guidance_timestep_max,
            ),
        )

    def schedule(self) -> Schedule:
        """The noise levels and timesteps of these settings."""
        return make_schedule(self.solver, self.sigma_rule, self.steps, self.flow_shift)
