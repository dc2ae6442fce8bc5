"""How fast a run goes, and when it will be done."""

from services.denoiser.experts import Expert

_NEWEST_SHARE = 0.3


class Pace:
    """Seconds a step by expert, as an exponential moving average.

    The first step of an expert, which also reads the text, counts until a second one is measured.
    """

    def __init__(self) -> None:
        self._seconds: dict[Expert, float] = {}
        self._measured: dict[Expert, int] = {}

    def observe(self, expert: Expert, seconds: float) -> None:
        """Take in a finished step."""
        count = self._measured.get(expert, 0)
        share = 1.0 if count <= 1 else _NEWEST_SHARE
        before = self._seconds.get(expert, seconds)
        self._seconds[expert] = before + share * (seconds - before)
        self._measured[expert] = count + 1

    def remaining(self, high_steps: int, low_steps: int) -> float:
        """Seconds for so many further steps; an expert not measured yet is taken to be as fast as the other."""
        return high_steps * self._of(Expert.HIGH) + low_steps * self._of(Expert.LOW)

    def _of(self, expert: Expert) -> float:
        return self._seconds.get(expert, next(iter(self._seconds.values()), 0.0))
