"""What is laid over the pictures: a line of text, a logo, subtitles."""

import enum
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, UnidentifiedImageError

from services.postprocess.fonts import font_for
from services.postprocess.frames import Pixels

_SAFE_AREA = 0.05
_MAX_LOGO_PIXELS = 16_000_000
_LABEL_HEIGHT = 1 / 24
_SUBTITLE_HEIGHT = 1 / 16
_LEAST_TEXT = 8


class Corner(enum.Enum):
    """Where something stands, inside the safe area of 5 % from each edge: (right, bottom)."""

    TOP_LEFT = (False, False)
    TOP_RIGHT = (True, False)
    BOTTOM_LEFT = (False, True)
    BOTTOM_RIGHT = (True, True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A visible line of text."""

    text: str
    corner: Corner = Corner.TOP_LEFT
    opacity: float = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Logo:
    """A picture; `width_share` is its width as a share of the clip's."""

    image: Image.Image
    corner: Corner = Corner.TOP_RIGHT
    opacity: float = 1.0
    width_share: float = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """Colours [h, w, 3] (0 to 255) with coverage [h, w, 1] (0 to 1), its upper left corner at `left`, `top`."""

    left: int
    top: int
    colours: npt.NDArray[np.float32]
    coverage: npt.NDArray[np.float32]

    def lay_over(self, picture: Pixels) -> None:
        """Draw onto `picture` in place."""
        height, width = self.coverage.shape[:2]
        under = picture[self.top : self.top + height, self.left : self.left + width]
        under[:] = np.rint(under + (self.colours - under) * self.coverage).astype(np.uint8)


def open_logo(data: bytes) -> Image.Image:
    """The picture in `data`, with its transparency. Raises `ValueError` unless it is a PNG, JPEG or WebP in bounds."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MAX_LOGO_PIXELS:
                raise ValueError(f"must have at most {_MAX_LOGO_PIXELS // 1_000_000} megapixels")
            return image.convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError("must be a PNG, JPEG or WebP picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as damaged:
        raise ValueError("must be a picture that is not damaged") from damaged


def label_overlay(label: Label, width: int, height: int) -> Overlay:
    """`label` on a clip of this size; a line that is too long is made smaller. Raises `GlyphMissing`."""
    drawn = _text(label.text, max(_LEAST_TEXT, round(height * _LABEL_HEIGHT)), width)
    return _placed(drawn, label.corner, label.opacity, width, height)


def logo_overlay(logo: Logo, width: int, height: int) -> Overlay:
    """`logo` on a clip of this size, never larger than the safe area."""
    inner_width, inner_height = _inner(width, height)
    scale = min(
        width * logo.width_share / logo.image.width, inner_width / logo.image.width, inner_height / logo.image.height
    )
    size = (max(1, round(logo.image.width * scale)), max(1, round(logo.image.height * scale)))
    return _placed(logo.image.resize(size, Image.Resampling.LANCZOS), logo.corner, logo.opacity, width, height)


def subtitle_overlay(text: str, width: int, height: int) -> Overlay:
    """`text` at the middle of the lower edge. Raises `GlyphMissing`."""
    drawn = _text(text, max(_LEAST_TEXT, round(height * _SUBTITLE_HEIGHT)), width)
    bottom = _placed(drawn, Corner.BOTTOM_LEFT, 1.0, width, height)
    return Overlay(
        left=max(0, (width - drawn.width) // 2), top=bottom.top, colours=bottom.colours, coverage=bottom.coverage
    )


def _text(text: str, size: int, width: int) -> Image.Image:
    """White letters with a dark edge on transparency, no wider than the safe area of a clip of `width`."""
    font = font_for(text, size)
    edge = max(1, size // 12)
    measure = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
    left, top, right, bottom = measure.multiline_textbbox((0, 0), text, font=font, stroke_width=edge, align="center")
    image = Image.new("RGBA", (max(1, round(right - left)), max(1, round(bottom - top))), (0, 0, 0, 0))
    ImageDraw.Draw(image).multiline_text(
        (-left, -top),
        text,
        font=font,
        fill=(255, 255, 255, 255),
        stroke_width=edge,
        stroke_fill=(0, 0, 0, 255),
        align="center",
    )
    image.thumbnail(_inner(width, image.height * 2), Image.Resampling.LANCZOS)
    return image


def _inner(width: int, height: int) -> tuple[int, int]:
    return max(1, round(width * (1 - 2 * _SAFE_AREA))), max(1, round(height * (1 - 2 * _SAFE_AREA)))


def _placed(image: Image.Image, corner: Corner, opacity: float, width: int, height: int) -> Overlay:
    image = image.crop((0, 0, min(image.width, width), min(image.height, height)))
    right, bottom = corner.value
    edge = round(_SAFE_AREA * min(width, height))
    pixels = np.asarray(image.convert("RGBA"), np.float32)
    return Overlay(
        left=max(0, width - edge - image.width) if right else min(edge, width - image.width),
        top=max(0, height - edge - image.height) if bottom else min(edge, height - image.height),
        colours=pixels[..., :3],
        coverage=pixels[..., 3:] * np.float32(opacity / 255),
    )
