"""The renderer: a clip's ground truth to pixels, at any size, length and frame rate, with no randomness."""

from typing import Final

import numpy as np
import numpy.typing as npt

from models.tiny.world.clip import Actor, Clip
from models.tiny.world.vocabulary import vocabulary

Array = npt.NDArray[np.float32]

LIGHT: Final = 0.05


def render(clip: Clip, *, width: int, height: int, num_frames: int) -> Array:
    """RGB frames ``[num_frames, height, width, 3]``, float32 in 0..1.

    The frame rate only scales playback: motion spans the whole clip whatever its length.
    """
    scene = vocabulary().scenes[clip.scene]
    time = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)[:, None, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[None, :, None]
    short = min(width, height)

    wide = np.asarray((x - 0.5) * (width / short), np.float32)
    high = np.asarray((y - 0.5) * (height / short), np.float32)
    across, down = _camera(clip.camera, time, wide, high)
    amount = _pattern(scene.pattern, across, down, clip.phase)
    base, texture = np.array(scene.base, np.float32), np.array(scene.texture, np.float32)
    # The model has no absolute positions: light falling from the upper left tells it where in the frame it is.
    light = np.float32(LIGHT) * ((1.0 - 2.0 * x) + (1.0 - 2.0 * y))
    frames = base + (texture - base) * amount[..., None] + light[..., None]
    painted: Array = np.array(np.broadcast_to(frames, (num_frames, height, width, 3)), np.float32)
    for actor in clip.actors:
        paint(painted, actor)
    np.clip(painted, 0.0, 1.0, out=painted)
    if clip.mood == "bright":
        painted *= 0.7
        painted += 0.3
    elif clip.mood == "dark":
        painted *= 0.55
    return painted


def _camera(camera: str, time: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Background coordinates seen at ``time`` (0..1); only a moving camera adds the time axis."""
    if camera == "pan_left":
        return x - 0.5 * time, y
    if camera == "pan_right":
        return x + 0.5 * time, y
    if camera == "zoom_in":
        scale = 1.9**-time
        return x * scale, y * scale
    if camera == "zoom_out":
        scale = 1.9 ** (time - 1.0)
        return x * scale, y * scale
    return x, y


def _pattern(name: str, x: Array, y: Array, phase: tuple[float, float]) -> Array:
    """Amount of texture colour, 0..1."""
    turn = np.float32(2.0 * np.pi)
    x = x + np.float32(phase[0])
    y = y + np.float32(phase[1])
    if name == "waves":
        amount = 0.5 + 0.5 * np.sin(turn * (3.0 * y + 0.18 * np.sin(turn * 2.0 * x)))
    elif name == "stripes":
        amount = 0.5 + 0.5 * np.sin(turn * (3.0 * x + 0.10 * np.sin(turn * 2.0 * y)))
    else:
        product = np.sin(turn * 2.0 * x) * np.sin(turn * 2.0 * y)
        dots = 2.5 * np.abs(product) - 1.5
        amount = np.clip(dots if name == "dots" else 0.5 + 2.5 * product, 0.0, 1.0)
    return np.asarray(amount, np.float32)


def paint(frames: Array, actor: Actor) -> None:
    """Draws ``actor`` over ``frames`` ``[F, H, W, 3]`` in place, anti-aliased over one pixel."""
    colour = np.array(vocabulary().colours[actor.colour], np.float32)
    count, height, width = frames.shape[:3]
    short = min(width, height)
    for index, moment in enumerate(np.linspace(0.0, 1.0, count, dtype=np.float32)):
        centre_x = (actor.start[0] + (actor.end[0] - actor.start[0]) * moment) * width
        centre_y = (actor.start[1] + (actor.end[1] - actor.start[1]) * moment) * height
        radius = (actor.radius_start + (actor.radius_end - actor.radius_start) * moment) * short
        reach = int(radius * 1.4) + 2
        left, right = max(int(centre_x) - reach, 0), min(int(centre_x) + reach + 1, width)
        top, bottom = max(int(centre_y) - reach, 0), min(int(centre_y) + reach + 1, height)
        if left >= right or top >= bottom:
            continue
        across = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - centre_x)
        down = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
        cover = np.clip(0.5 - _distance(actor.shape, across, down, np.float32(radius)), 0.0, 1.0)[..., None]
        patch = frames[index, top:bottom, left:right]
        patch += (colour - patch) * cover


def _distance(shape: str, x: Array, y: Array, radius: np.float32) -> Array:
    """Signed distance in pixels to the outline, negative inside; y points down."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius * np.float32(0.88)
    if shape == "triangle":
        slanted = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
        return np.maximum(slanted, y) - radius * np.float32(0.62)
    # A pentagram is where at least four of five half-planes hold: the second largest distance decides.
    first = second = None
    for k in range(5):
        angle = np.float32(np.pi / 2.0 + 2.0 * np.pi * k / 5.0)
        plane = x * np.cos(angle) + y * np.sin(angle)
        if first is None or second is None:
            first, second = plane, np.full_like(plane, -np.inf)
        else:
            second = np.maximum(second, np.minimum(first, plane))
            first = np.maximum(first, plane)
    return np.asarray(second, dtype=np.float32) - radius * np.float32(1.25 * 0.309)
