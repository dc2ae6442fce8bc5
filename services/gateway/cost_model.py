"""What a generation costs in device-seconds, learned from the steps that were measured. Pure: no clock, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ATTENTION_TOKENS = 32_760.0
"""Tokens at which attention costs as much as everything else in a forward of Wan A14B: a forward is 6.5 PFLOP at 75,600
tokens (1280x720x81) and 1.7 PFLOP at 32,760 (832x480x81); t * (1 + t / 32760) fits both within 1 %."""

SMOOTHING = 0.2
"""Weight of the newest measurement in the moving average."""


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip: the first picture, then one for every four."""
    return (num_frames - 1) // 4 + 1


def tokens(width: int, height: int, num_frames: int) -> int:
    """Tokens of one forward: patches of 1x2x2 latents, which are 1/8 of the pixels each way."""
    return latent_frames(num_frames) * (width // 16) * (height // 16)


def forward_work(token_count: int) -> float:
    """Relative work of one forward over `token_count` tokens: a linear and an attention part."""
    return token_count * (1.0 + token_count / ATTENTION_TOKENS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What shapes the cost of a generation. `forwards_*`: of a step, 2 with classifier-free guidance, 1 without."""

    model: str
    width: int
    height: int
    num_frames: int
    high_steps: int
    low_steps: int
    forwards_high: float = 2.0
    forwards_low: float = 2.0

    @property
    def work(self) -> float:
        """Relative work of one forward."""
        return forward_work(tokens(self.width, self.height, self.num_frames))

    @property
    def pixels(self) -> int:
        """Pixels of the whole clip."""
        return self.width * self.height * self.num_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Predicted device-seconds by stage."""

    encode: float
    high: float
    low: float
    render: float

    @property
    def total(self) -> float:
        """Predicted device-seconds in all."""
        return self.encode + self.high + self.low + self.render


@dataclass(slots=True)
class CostModel:
    """Seconds a unit of work for every (model, kind of work), as moving averages over what was observed.

    Before anything of a kind was observed, the mean of what was observed of other models counts, then `priors`.
    """

    priors: Mapping[str, float] = field(
        default_factory=lambda: {"encode": 0.05, "high": 4e-5, "low": 4e-5, "render": 1e-6}
    )
    _rates: dict[tuple[str, str], float] = field(default_factory=dict)

    def observe_step(self, plan: Plan, *, high: bool, seconds: float) -> None:
        """Learn from one solver step."""
        forwards = plan.forwards_high if high else plan.forwards_low
        self._observe(plan.model, "high" if high else "low", seconds / (forwards * plan.work))

    def observe_encode(self, plan: Plan, seconds: float) -> None:
        """Learn from one text encoding."""
        self._observe(plan.model, "encode", seconds)

    def observe_render(self, plan: Plan, seconds: float) -> None:
        """Learn from one decoded and encoded clip."""
        self._observe(plan.model, "render", seconds / plan.pixels)

    def estimate(self, plan: Plan) -> Estimate:
        """Predict the cost of a whole generation."""
        return Estimate(
            encode=self._rate(plan.model, "encode"),
            high=self._rate(plan.model, "high") * plan.forwards_high * plan.work * plan.high_steps,
            low=self._rate(plan.model, "low") * plan.forwards_low * plan.work * plan.low_steps,
            render=self._rate(plan.model, "render") * plan.pixels,
        )

    def _observe(self, model: str, kind: str, rate: float) -> None:
        if not 0.0 <= rate < float("inf"):
            return
        known = self._rates.get((model, kind))
        self._rates[model, kind] = rate if known is None else known + SMOOTHING * (rate - known)

    def _rate(self, model: str, kind: str) -> float:
        known = self._rates.get((model, kind))
        if known is not None:
            return known
        others = [rate for (_, other), rate in self._rates.items() if other == kind]
        return sum(others) / len(others) if others else self.priors[kind]
