"""The pace of the solver steps seen so far."""

from collections import deque

from rushes.cli.reports import wording
from rushes.v1.denoiser_pb2 import StepProgress
from rushes.v1.sampling_pb2 import Expert

WINDOW = 5


class Pace:
    """Seconds a step, over the last few steps of the expert at work, and in all."""

    def __init__(self) -> None:
        self._expert: Expert.ValueType = Expert.EXPERT_UNSPECIFIED
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.steps = 0
        self.total = 0
        self.seconds = 0.0
        self.by_expert: dict[Expert.ValueType, int] = {}

    def take(self, step: StepProgress) -> None:
        """Count a finished step. The experts differ in speed: each has its own pace."""
        if step.expert != self._expert:
            self._recent.clear()
            self._expert = step.expert
        self._recent.append(step.seconds)
        self.steps += 1
        self.total = step.total
        self.seconds += step.seconds
        self.by_expert[step.expert] = self.by_expert.get(step.expert, 0) + 1

    def now(self, step: StepProgress) -> str:
        """The step in words: its number, the expert, seconds a step, and what is left."""
        mean = sum(self._recent) / len(self._recent)
        expert = wording.EXPERTS.get(step.expert, "")
        left = f"  {wording.seconds(step.eta_seconds)} left" if step.eta_seconds > 0 else ""
        return f"step {step.index + 1}/{step.total}  {expert}  {mean:.3f} s/step{left}"

    def summary(self) -> str:
        """All steps in words."""
        experts = ", ".join(f"{count} {wording.EXPERTS.get(expert, '')}" for expert, count in self.by_expert.items())
        mean = self.seconds / self.steps if self.steps else 0.0
        return f"{self.steps} steps ({experts}) in {wording.seconds(self.seconds)}, {mean:.3f} s/step"
