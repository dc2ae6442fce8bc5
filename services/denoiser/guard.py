"""Watches the predicted clip during denoising: what is not finite, or black, is not denoised to the end."""

import math
from collections.abc import Generator

import torch

from services.chassis.errors import FailedPrecondition
from services.denoiser.sampler import Step
from services.model.manifest import LatentRgb

JUDGED_FROM = 0.75
"""Noise level from which on a prediction's darkness is judged.

Measured with the embedded model on dark night scenes: at most 0.75 of a prediction is dark from there on, where a black
clip has 0.99. Near pure noise every prediction is dark.
"""
_DARK = 24 / 255
_LUMA = (0.299, 0.587, 0.114)


class Guard:
    """Looks at every step of one run without waiting for the device: the look is queued behind the step's own kernels.

    `black_share` is the share of the picture above which a prediction is black; 0 judges no darkness.
    """

    def __init__(self, latent_rgb: LatentRgb, device: torch.device, *, black_share: float) -> None:
        luma = torch.tensor(_LUMA)
        self._weights = (torch.tensor(latent_rgb.factors) @ luma).to(device)
        self._bias = float(torch.tensor(latent_rgb.bias) @ luma)
        self._black_share = black_share
        # Written by the device when it gets there, which is before the step's end is waited for.
        self._seen = torch.zeros(2, pin_memory=device.type == "cuda")

    def watched(self, steps: Generator[Step, None, None]) -> Generator[Step, None, None]:
        """`steps`, each with its look queued."""
        try:
            for step in steps:
                with torch.inference_mode():
                    self._seen.copy_(self._look(step), non_blocking=True)
                yield step
        finally:
            steps.close()

    def verdict(self, step: Step) -> FailedPrecondition | None:
        """Why `step`, which the device has finished, is the last; None if the run may go on."""
        total, dark = self._seen.tolist()
        if not math.isfinite(total):
            return FailedPrecondition(
                f"The prediction after step {step.index} has values that are not finite.",
                reason="LATENTS_NOT_FINITE",
                metadata={"check": "not_finite", "step": str(step.index), "score": "1", "threshold": "0"},
            )
        if self._judges(step) and dark > self._black_share:
            return FailedPrecondition(
                f"The prediction after step {step.index} is black.",
                reason="PREDICTION_BLACK",
                metadata={
                    "check": "black",
                    "step": str(step.index),
                    "score": f"{dark:.6g}",
                    "threshold": f"{self._black_share:.6g}",
                },
            )
        return None

    def _judges(self, step: Step) -> bool:
        # A manifest without a map of its own has Wan 2.1's, which says nothing of latents of other channels.
        mapped = step.x.shape[1] == len(self._weights)
        return self._black_share > 0 and mapped and step.sigma <= JUDGED_FROM

    def _look(self, step: Step) -> torch.Tensor:
        """[2]: a sum that is finite exactly if the prediction is, and the share of it that is dark."""
        total = step.v.sum(dtype=torch.float32) + step.x.sum(dtype=torch.float32)
        if not self._judges(step):
            return torch.stack([total, torch.zeros_like(total)])
        rgb = torch.tensordot(step.x0()[0].float(), self._weights, dims=([0], [0])) + self._bias
        return torch.stack([total, (rgb < 2 * _DARK - 1).float().mean()])
