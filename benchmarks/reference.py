"""The reference that the relay is measured against: diffusers' own pipeline and video export, in one process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

from benchmarks.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferencePipeline:
    """diffusers' `WanPipeline` with a model's own weights and scheduler, without any serving."""

    pipeline: Any

    @classmethod
    def load(cls, model: Path) -> "ReferencePipeline":
        """Load the pipeline in float32."""
        pipeline = WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline=pipeline)

    def make(self, work: Work, target: Path) -> None:
        """Make the clip of `work` and export it to `target`."""
        frames = self.pipeline(
            prompt=work.prompt,
            negative_prompt=work.negative_prompt,
            width=work.width,
            height=work.height,
            num_frames=work.num_frames,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale_high,
            guidance_scale_2=work.guidance_scale_low,
            max_sequence_length=work.text_length,
            generator=torch.Generator("cpu").manual_seed(work.seed),
            output_type="np",
        ).frames[0]
        export_to_video(list(frames), str(target), fps=work.fps)
