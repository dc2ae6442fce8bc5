"""The metrics of a denoiser: seconds of steps and of waiting by expert, size and class; runs, memory and residency."""

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from services.chassis.telemetry import meter
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.shapes import VideoShape
from services.denoiser.turnstile import Turnstile


class StepGauges:
    """What every step of a run of one size and class adds."""

    def __init__(self, shape: VideoShape, priority: int) -> None:
        self._run = {"shape": str(shape), "class": str(priority)}
        self._seconds = meter().create_histogram(
            "rushes.denoiser.step.duration", unit="s", description="Device seconds of one solver step"
        )
        self._wait = meter().create_histogram(
            "rushes.denoiser.step.wait", unit="s", description="Seconds that a run waited for the device before a step"
        )

    def stepped(self, expert: Expert, seconds: float) -> None:
        """A step took so long on the device."""
        self._seconds.record(seconds, self._run | {"expert": expert.name.lower()})

    def waited(self, expert: Expert, seconds: float) -> None:
        """A run waited so long for its turn."""
        self._wait.record(seconds, self._run | {"expert": expert.name.lower()})


def watch(turnstile: Turnstile, pool: ExpertPool) -> None:
    """Have the state of the process observed whenever metrics are collected."""

    def runs(_options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(turnstile.runs, {"state": "seated"})
        yield Observation(turnstile.waiting, {"state": "waiting"})

    def memory(_options: CallbackOptions) -> Iterable[Observation]:
        available, reserved = turnstile.memory
        yield Observation(available, {"kind": "available"})
        yield Observation(reserved, {"kind": "reserved"})

    def residency(_options: CallbackOptions) -> Iterable[Observation]:
        for expert in pool.experts:
            yield Observation(int(expert in pool.resident), {"expert": expert.name.lower()})

    def swaps(_options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(0 if pool.residence is None else pool.residence.swaps)

    meter().create_observable_counter(
        "rushes.denoiser.swaps", [swaps], description="How often an expert took another's place on the device"
    )
    meter().create_observable_gauge(
        "rushes.denoiser.runs", [runs], description="Runs that have a slot, and runs that wait for their next step"
    )
    meter().create_observable_gauge(
        "rushes.denoiser.memory", [memory], unit="By", description="Memory that admission goes by; 0 where uncounted"
    )
    meter().create_observable_gauge(
        "rushes.denoiser.resident", [residency], description="1 for an expert that is on the device"
    )
