"""Sizes of a clip, of its latents and of the transformer's token grid."""

from dataclasses import dataclass

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
PATCH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShape:
    """A clip in pixels and frames: width and height are multiples of 16, `frames` is 4k + 1."""

    width: int
    height: int
    frames: int

    def __post_init__(self) -> None:
        """Raise `ValueError` for a size that the model has no latents for."""
        multiple = SPATIAL_STRIDE * PATCH
        for name, value in (("width", self.width), ("height", self.height)):
            if value <= 0 or value % multiple:
                raise ValueError(f"{name} must be a positive multiple of {multiple}, not {value}")
        if self.frames <= 0 or self.frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"num_frames must be 4k + 1, not {self.frames}")

    @classmethod
    def parse(cls, text: str) -> "VideoShape":
        """The size that `text` says as WIDTHxHEIGHTxFRAMES. Raises `ValueError` for anything else."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"a size is WIDTHxHEIGHTxFRAMES, not {text!r}")
        return cls(width=int(parts[0]), height=int(parts[1]), frames=int(parts[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def latents(self, channels: int) -> "LatentShape":
        """This clip's latents: the first frame has a latent frame of its own, every later one stands for four."""
        return LatentShape(
            channels=channels,
            frames=(self.frames - 1) // TEMPORAL_STRIDE + 1,
            height=self.height // SPATIAL_STRIDE,
            width=self.width // SPATIAL_STRIDE,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentShape:
    """Latents of one clip, [channels, frames, height, width]."""

    channels: int
    frames: int
    height: int
    width: int

    @property
    def batch(self) -> tuple[int, int, int, int, int]:
        """The shape of a batch of one: [1, C, T, H, W]."""
        return (1, self.channels, self.frames, self.height, self.width)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, height and width (the patch is 1 x 2 x 2)."""
        return (self.frames, self.height // PATCH, self.width // PATCH)

    @property
    def tokens(self) -> int:
        """Length of the transformer's sequence."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def numel(self) -> int:
        """Values in one clip's latents."""
        return self.channels * self.frames * self.height * self.width
