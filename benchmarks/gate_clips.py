"""Clean clips of many kinds, and what damages them, for the calibration of the quality gate."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Final, TypeAlias

import av
import cv2
import numpy as np
import skimage.data
from diffusers import AutoencoderKLWan

from models.tiny.train.loop import generators
from models.tiny.train.upscaler import degrade
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render
from services.postprocess.frames import Frames, Pixels
from services.postprocess.inspection import Check
from services.postprocess.interpolate import Interpolator

Numbers: TypeAlias = np.random.Generator
Damage: TypeAlias = Callable[[Pixels, Numbers], Pixels]
Place: TypeAlias = tuple[float, float, float, float]
"""Centre, width and height of a window, in pixels of the picture."""

FPS: Final = Fraction(16)
PHOTOGRAPHS: Final = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
)
"""Pictures in scikit-image's wheel; `cell`, which is out of focus, is not among them."""
_FRAMES: Final = (17, 33)
_SIZES: Final = ((96, 96), (192, 192), (256, 144), (144, 256), (384, 216))
_USUAL_CRF: Final = 23
_FACES: Final = 100
_MIXTURE: Final = Mixture(two_objects=0.3, moving_camera=0.4)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateClip:
    """A clip, at `fps`, where it comes from, and how much larger it was made than it came."""

    source: str
    pixels: Pixels
    fps: Fraction = FPS
    scale: int = 1


def rendered(numbers: Numbers) -> GateClip:
    """A clip of the embedded model's world in which something moves, at one of several sizes."""
    width, height = _SIZES[int(numbers.integers(len(_SIZES)))]
    return GateClip(source="rendered", pixels=_drawn(numbers, width, height, int(numbers.choice(_FRAMES))))


def decoded(numbers: Numbers, vae: AutoencoderKLWan) -> GateClip:
    """A clip of that world through the embedded model's VAE, its latents a little wrong, as a denoiser's are."""
    _, noise = generators(int(numbers.integers(2**31)), 0)
    frames = _drawn(numbers, 96, 96, 17)
    return GateClip(source="decoded", pixels=degrade(vae, frames, jitter=0.1 * float(numbers.random()), noise=noise))


def photographed(numbers: Numbers, *, slowest: float = 0.02) -> GateClip:
    """A window that moves over a photograph by `slowest` to a quarter of its width, and comes nearer or goes away."""
    width, height = _SIZES[int(numbers.integers(len(_SIZES)))]
    picture = getattr(skimage.data, str(numbers.choice(PHOTOGRAPHS)))()
    colours = picture[..., :3] if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    path = _pan(numbers, colours.shape[:2], width / height, slowest=slowest)
    frames = [_window(colours, place, width, height) for place in path(int(numbers.choice(_FRAMES)))]
    return GateClip(source="photographs", pixels=np.stack(frames))


def portrayed(numbers: Numbers) -> GateClip:
    """A face that moves a little: the astronaut's, or one of Labeled Faces in the Wild, enlarged."""
    if numbers.random() < 0.3:
        face = skimage.data.astronaut()[0:256, 96:352]
    else:
        small = skimage.data.lfw_subset()[int(numbers.integers(_FACES))]
        gray = cv2.resize((small * 255).astype(np.uint8), (160, 160), interpolation=cv2.INTER_CUBIC)
        ground = np.full((256, 256), int(np.median(gray[0])), np.uint8)
        ground[48:208, 48:208] = gray
        face = np.repeat(cv2.GaussianBlur(ground, (0, 0), 0.8)[..., None], 3, axis=2)
    scale, step = numbers.uniform(0.9, 1.05), numbers.uniform(-1.2, 1.2, 2)
    frames = [
        cv2.warpAffine(
            face,
            np.array([[scale, 0, 30 + step[0] * index], [0, scale, 10 + step[1] * index]]),
            (320, 256),
            borderMode=cv2.BORDER_REPLICATE,
        )
        for index in range(33)
    ]
    return GateClip(source="faces", pixels=np.stack(frames))


def interpolated(numbers: Numbers) -> GateClip:
    """A slow window over a photograph, brought from 16 to 48 frames a second by the stage that does so."""
    clip = replace(photographed(numbers, slowest=0.05), source="interpolated")
    stage = Interpolator(source_fps=FPS, target_fps=3 * FPS)
    items = [*stage.push(Frames(first=0, pixels=clip.pixels)), *stage.flush()]
    return replace(clip, pixels=np.concatenate([item.pixels for item in items]), fps=3 * FPS)


def encoded(clip: GateClip, crf: int = _USUAL_CRF) -> GateClip:
    """The clip after H.264 and back."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clip.fps)
        stream.height, stream.width = clip.pixels.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf), "threads": "1"}
        for picture in clip.pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return replace(clip, pixels=pixels, source=f"{clip.source}, H.264")


def clean_clips(count: int, *, seed: int, vae: AutoencoderKLWan) -> Iterator[GateClip]:
    """`count` clips of each source, every one also after H.264 at a usual quality."""
    for index in range(count):
        numbers = np.random.default_rng([seed, index])
        for clip in (
            rendered(numbers),
            decoded(numbers, vae),
            photographed(numbers),
            portrayed(numbers),
            interpolated(numbers),
        ):
            yield clip
            yield encoded(clip)


def _drawn(numbers: Numbers, width: int, height: int, count: int) -> Pixels:
    while True:
        clip = draw_clip(numbers, _MIXTURE, held_out=bool(numbers.integers(2)))
        # A world without a motion gives one picture again and again, which is what the gate calls frozen.
        if clip.camera != "static" or any(actor.action != "still" for actor in clip.actors):
            painted = render(clip, width=width, height=height, num_frames=count)
            return np.asarray(np.round(painted * 255), np.uint8)


def _pan(numbers: Numbers, size: tuple[int, ...], shape: float, *, slowest: float) -> Callable[[int], Iterator[Place]]:
    """Centre and size of a window of `shape` within a picture of `size`, over so many frames."""
    high, wide = size
    width = min(wide, high * shape) * numbers.uniform(0.5, 0.75)
    height = width / shape
    x, y = numbers.uniform(width / 2, wide - width / 2), numbers.uniform(height / 2, high - height / 2)
    # Towards the middle: a window that stops at the picture's edge would stand still there.
    turn = np.arctan2(high / 2 - y, wide / 2 - x) + numbers.uniform(-0.5, 0.5)
    far, zoom = numbers.uniform(slowest, 0.25) * width, numbers.uniform(0.9, 1.1)

    def path(count: int) -> Iterator[Place]:
        for moment in np.linspace(0, 1, count):
            scale = 1 + (zoom - 1) * moment
            yield x + np.cos(turn) * far * moment, y + np.sin(turn) * far * moment, width * scale, height * scale

    return path


def _window(picture: Pixels, place: Place, width: int, height: int) -> Pixels:
    x, y, wide, high = place
    across, down = wide / width, high / height
    source = cv2.GaussianBlur(picture, (0, 0), across / 2.2) if across > 1.2 else picture
    matrix = np.array([[across, 0, x - wide / 2 + across / 2 - 0.5], [0, down, y - high / 2 + down / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(window, np.uint8)


def _some(pixels: Pixels, numbers: Numbers, change: Callable[[Pixels], Pixels]) -> Pixels:
    """The clip with `change` made to a run of its frames, or to all."""
    count = len(pixels)
    length = int(numbers.integers(max(3, count // 4), count + 1))
    first = int(numbers.integers(0, count - length + 1))
    damaged = pixels.copy()
    damaged[first : first + length] = np.stack([change(one) for one in pixels[first : first + length]])
    return damaged


def _black(pixels: Pixels, numbers: Numbers) -> Pixels:
    level, noise = numbers.integers(0, 14), numbers.uniform(0, 2)
    return _some(pixels, numbers, lambda one: _bytes(numbers.normal(level, noise, one.shape)))


def _held(pixels: Pixels, numbers: Numbers) -> Pixels:
    length = int(numbers.integers(6, max(7, len(pixels) // 2)))
    first = int(numbers.integers(0, len(pixels) - length))
    damaged = pixels.copy()
    damaged[first : first + length] = pixels[first]
    return damaged


def _repeated(pixels: Pixels, numbers: Numbers) -> Pixels:
    damaged = pixels.copy()
    for place in numbers.choice(np.arange(2, len(pixels) - 2, 3), int(numbers.integers(1, 4)), replace=False):
        damaged[place] = damaged[place - 1]
    return damaged


def _flickering(pixels: Pixels, numbers: Numbers) -> Pixels:
    damaged, depth = pixels.astype(np.float64), numbers.uniform(0.1, 0.35)
    first = int(numbers.integers(1, len(pixels) - 6))
    period, length = int(numbers.integers(2, 6)), int(numbers.integers(1, 3))
    for place in range(first, len(pixels) - 3, period):
        damaged[place : place + min(length, period - 1)] *= 1 - depth
    return _bytes(damaged)


def _underexposed(pixels: Pixels, numbers: Numbers) -> Pixels:
    # So that the brightest hundredth has light, and little of it: less is black.
    wanted = numbers.uniform(32, 41)
    return _some(pixels, numbers, lambda one: _bytes(one * (wanted / max(1.0, float(np.percentile(_luma(one), 99))))))


def _overexposed(pixels: Pixels, numbers: Numbers) -> Pixels:
    share = numbers.uniform(0.6, 0.95)

    def lit(one: Pixels) -> Pixels:
        lifted = one.astype(np.float64) + (24 + 252 / 2 - min(150.0, float(_luma(one).mean())))
        return _bytes(lifted * (275 / max(1.0, float(np.percentile(lifted.min(axis=2), 100 * (1 - share))))))

    return _some(pixels, numbers, lit)


def _blurred(pixels: Pixels, numbers: Numbers) -> Pixels:
    deviation = numbers.uniform(0.06, 0.1) * max(pixels.shape[1:3])
    return _some(pixels, numbers, lambda one: cv2.GaussianBlur(one, (0, 0), deviation))


def _blocky(pixels: Pixels, numbers: Numbers) -> Pixels:
    quality = int(numbers.integers(1, 6))

    def coarse(one: Pixels) -> Pixels:
        _, data = cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

    return _some(pixels, numbers, coarse)


def _melting(pixels: Pixels, numbers: Numbers) -> Pixels:
    """From some frame on, what is in the picture runs into all directions, differently every few frames."""
    damaged, first = pixels.copy(), int(numbers.integers(12, 17))
    rows, columns = np.mgrid[: pixels.shape[1], : pixels.shape[2]].astype(np.float32)
    for place in range(first, len(pixels)):
        if (place - first) % 3 == 0:
            reach, turns = numbers.uniform(10, 16), numbers.uniform(0, 2 * np.pi, 2)
        across = columns + (reach * np.sin(rows / 13 + turns[0])).astype(np.float32)
        down = rows + (reach * np.sin(columns / 13 + turns[1])).astype(np.float32)
        damaged[place] = cv2.remap(pixels[place], across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return damaged


def _jumping(pixels: Pixels, numbers: Numbers) -> Pixels:
    """The face is now here and now there, and of another size there."""
    damaged, scale = pixels.copy(), numbers.uniform(0.5, 0.65)
    place = np.array([[scale, 0, numbers.uniform(80, 140)], [0, scale, numbers.uniform(40, 100)]])
    for index in range(len(pixels)):
        if index // 4 % 2:
            damaged[index] = cv2.warpAffine(pixels[index], place, (320, 256), borderMode=cv2.BORDER_REPLICATE)
    return damaged


DAMAGES: Final[Mapping[str, tuple[Check, Damage]]] = MappingProxyType(
    {
        "black": (Check.BLACK, _black),
        "frozen: held": (Check.FROZEN, _held),
        "frozen: repeated": (Check.FROZEN, _repeated),
        "flicker": (Check.FLICKER, _flickering),
        "underexposed": (Check.UNDEREXPOSED, _underexposed),
        "overexposed": (Check.OVEREXPOSED, _overexposed),
        "blur": (Check.BLUR, _blurred),
        "blocking": (Check.BLOCKING, _blocky),
        "face: melting": (Check.FACE, _melting),
        "face: jumping": (Check.FACE, _jumping),
    }
)
"""Every kind of damage, with the check that must find it. What is not finite is no picture: the decoder refuses it."""


def damaged_clips(name: str, count: int, *, seed: int, vae: AutoencoderKLWan) -> Iterator[GateClip]:
    """`count` clips with the damage `name`: faces for the damages of faces, else the other sources in turn."""
    check, damage = DAMAGES[name]
    for index in range(count):
        numbers = np.random.default_rng([seed, list(DAMAGES).index(name), index])
        if check is Check.FACE:
            clip = portrayed(numbers)
        elif index % 3 == 0:
            clip = rendered(numbers)
        elif index % 3 == 1:
            clip = photographed(numbers)
        else:
            clip = decoded(numbers, vae)
        yield replace(clip, source=f"{clip.source}, {name}", pixels=damage(clip.pixels, numbers))


def _luma(picture: Pixels) -> np.typing.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def _bytes(levels: np.typing.NDArray[np.float64]) -> Pixels:
    return np.asarray(np.clip(np.round(levels), 0, 255), np.uint8)
