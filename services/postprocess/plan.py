"""What one rendering makes: every choice that a request leaves open, filled in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from services.postprocess.animation import AnimationFormat
from services.postprocess.captions import Captions
from services.postprocess.finish import Finish
from services.postprocess.inspection import Check, Rule
from services.postprocess.interpolate import interpolated_count
from services.postprocess.mp4 import Container, Encoding
from services.postprocess.provenance import Making


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPlan:
    """The clip as denoised (`width`, `height`, `num_frames`, `fps`), and what becomes of it.

    `target_fps` is the rate of the finished clip, `upscale` how much larger the pictures become before `finish`, which
    has the finished size. `mark_id`, where there is one, is carried by every finished frame. `container` is the format
    of the finished file, which is made if `video` says so; `making` is what its manifest tells.
    """

    width: int
    height: int
    num_frames: int
    fps: Fraction
    target_fps: Fraction
    upscale: int
    upscaler: str
    finish: Finish
    encoding: Encoding
    mark_id: int | None = None
    rules: Mapping[Check, Rule] = field(default_factory=dict)
    poster: bool = False
    contact_sheet: bool = False
    sprite: bool = False
    animations: frozenset[AnimationFormat] = frozenset()
    loop_frames: int = 0
    captions: Captions | None = None
    video: bool = False
    hls: bool = False
    container: Container = Container.MP4
    making: Making = field(default_factory=Making)

    @property
    def finished_frames(self) -> int:
        """Frames of the finished clip."""
        return self.interpolated_frames - self.loop_frames

    @property
    def interpolated_frames(self) -> int:
        """Frames at the finished rate, before the clip is made a loop."""
        return interpolated_count(self.num_frames, source_fps=self.fps, target_fps=self.target_fps)

    @property
    def needs_spool(self) -> bool:
        """Whether some file is made of the fragments."""
        return self.video or self.hls

    @property
    def upscaled_size(self) -> tuple[int, int]:
        """Width and height before `finish`."""
        return self.width * self.upscale, self.height * self.upscale
