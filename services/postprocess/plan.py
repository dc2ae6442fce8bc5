"""What one rendering makes: every choice that a request leaves open, filled in."""

from dataclasses import dataclass
from fractions import Fraction

from services.postprocess.mp4 import Encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPlan:
    """The clip as denoised (`width`, `height`, `num_frames`, `fps`), how it is encoded, and which stills go with it."""

    width: int
    height: int
    num_frames: int
    fps: Fraction
    encoding: Encoding
    poster: bool = False
    contact_sheet: bool = False
