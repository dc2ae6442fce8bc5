"""The checker: reads a clip's attributes back from its pixels by classical means, without any learned part.

Scene and mood by colour distance, objects by segmentation, shape by template overlap, action by trajectory and area,
camera by matching the background against each motion.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from models.tiny.world.clip import Actor
from models.tiny.world.render import LIGHT, paint
from models.tiny.world.vocabulary import CAMERAS, MOODS, SHAPES, vocabulary

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_TOLERANCE: Final = 0.16
_CAP: Final = 0.25
_SMALLEST: Final = 0.004
_GROWTH: Final = 1.45
_TRAVEL: Final = 0.12
_TEMPLATE: Final = 48
_MOODS: Final = {"neutral": (1.0, 0.0), "bright": (0.7, 0.3), "dark": (0.55, 0.0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One object read back. Centres are fractions of the frame from the first to the last frame."""

    colour: str
    shape: str
    action: str
    first: tuple[float, float]
    last: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the checker saw in a clip; objects from the largest to the smallest."""

    sightings: tuple[Sighting, ...]
    scene: str
    mood: str
    camera: str


def read_back(frames: Array) -> Reading:
    """Reads ``frames`` ``[F, H, W, 3]``, RGB in 0..1."""
    scene, mood = _scene_and_mood(frames)
    distance, colours = _segment(frames, scene, mood)
    foreground = distance > _TOLERANCE * _MOODS[mood][0] ** 0.5
    kept = _sightings(foreground, colours)
    return Reading(
        sightings=tuple(kept),
        scene=scene,
        mood=mood,
        camera=_camera(frames, foreground, mood),
    )


def _light(height: int, width: int, mood: str) -> Array:
    """The renderer's light after ``mood``; subtracting it leaves flat background colours."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    light = LIGHT * ((1.0 - 2.0 * x)[None, :] + (1.0 - 2.0 * y)[:, None])
    return np.asarray(light * _MOODS[mood][0], dtype=np.float32)[..., None]


def _in_mood(colour: tuple[float, float, float], mood: str) -> Array:
    scale, offset = _MOODS[mood]
    return np.array(colour, np.float32) * np.float32(scale) + np.float32(offset)


def _from_background(frames: Array, scene: str, mood: str) -> Array:
    """Distance of every pixel to the line between the scene's two colours."""
    words = vocabulary().scenes[scene]
    base, texture = _in_mood(words.base, mood), _in_mood(words.texture, mood)
    offset = frames - _light(frames.shape[1], frames.shape[2], mood) - base
    line = texture - base
    amount = np.clip(offset @ line / float(line @ line), 0.0, 1.0)
    return np.asarray(np.sqrt(np.square(offset - amount[..., None] * line).sum(-1)), dtype=np.float32)


def _from_palette(frames: Array, mood: str) -> Array:
    """Squared distance of every pixel to every palette colour, ``[..., 8]``."""
    palette = np.stack([_in_mood(colour, mood) for colour in vocabulary().colours.values()])
    squares = np.square(frames).sum(-1)[..., None] - 2.0 * frames @ palette.T + np.square(palette).sum(-1)
    return np.asarray(np.maximum(squares, 0.0), dtype=np.float32)


def _scene_and_mood(frames: Array) -> tuple[str, str]:
    """The pair that explains the pixels best, each pixel by background or by an object's colour."""
    height, width = frames.shape[1:3]
    small = np.stack(
        [
            cv2.resize(
                frame,
                (48 * width // min(height, width), 48 * height // min(height, width)),
                interpolation=cv2.INTER_AREA,
            )
            for frame in frames[:: max(1, len(frames) // 4)]
        ]
    )
    best, answer = np.inf, ("", "")
    for mood in MOODS:
        palette = np.sqrt(_from_palette(small, mood).min(-1)) + 0.04
        for scene in vocabulary().scenes:
            cost = float(np.minimum(np.minimum(_from_background(small, scene, mood), palette), _CAP).mean())
            if cost < best:
                best, answer = cost, (scene, mood)
    return answer


def _segment(frames: Array, scene: str, mood: str) -> tuple[Array, npt.NDArray[np.int64]]:
    """Distance from the background, and the index of the nearest palette colour, per pixel."""
    return _from_background(frames, scene, mood), _from_palette(frames, mood).argmin(-1)


class _Piece(NamedTuple):
    """One connected object in one frame; area and centre in pixels, colour by its inner pixels' majority."""

    area: float
    centre: tuple[float, float]
    colour: int
    mask: Mask


def _sightings(foreground: Mask, colours: npt.NDArray[np.int64]) -> list[Sighting]:
    """At most two objects: pieces that persist over most frames, followed by colour or else by nearness."""
    frames = [_pieces(mask, labels) for mask, labels in zip(foreground, colours, strict=True)]
    largest = max((frame[0].area for frame in frames if frame), default=0.0)
    smallest = max(_SMALLEST * foreground[0].size, 0.03 * largest)
    frames = [[piece for piece in frame if piece.area > smallest] for frame in frames]
    present = [frame for frame in frames if frame]
    if len(present) < 0.6 * len(frames):
        return []
    pairs = [frame for frame in frames if len(frame) == 2]
    if len(pairs) < 0.5 * len(frames):
        track = [frame[0] for frame in present]
        return [_describe(track, foreground.shape)]
    first, second = pairs[0]
    tracks: tuple[list[_Piece], list[_Piece]] = ([first], [second])
    for left, right in pairs[1:]:
        straight = _strangeness(tracks[0][-1], left) + _strangeness(tracks[1][-1], right)
        crossed = _strangeness(tracks[0][-1], right) + _strangeness(tracks[1][-1], left)
        ordered = (left, right) if straight <= crossed else (right, left)
        for track, piece in zip(tracks, ordered, strict=True):
            track.append(piece)
    described = sorted(tracks, key=lambda track: -sum(piece.area for piece in track))
    return [_describe(track, foreground.shape) for track in described]


def _strangeness(before: _Piece, after: _Piece) -> float:
    """How unlikely two pieces are the same object, in pixels."""
    travel = np.hypot(after.centre[0] - before.centre[0], after.centre[1] - before.centre[1])
    return float(travel) + (0.0 if before.colour == after.colour else 1000.0)


def _pieces(mask: Mask, colours: npt.NDArray[np.int64]) -> list[_Piece]:
    """The two largest pieces of a frame. Pieces that touch are parted where a second colour fills a quarter."""
    pieces: list[_Piece] = []
    for part in _components(mask):
        inner = cv2.erode(part.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        labels = colours[inner if inner.any() else part]
        ranked = np.bincount(labels, minlength=8).argsort()[::-1][:2]
        shares = [float(np.mean(labels == colour)) for colour in ranked]
        if shares[1] > 0.25:
            for colour in ranked:
                pieces += [_piece(split, int(colour)) for split in _components(part & (colours == colour))[:1]]
        else:
            pieces.append(_piece(part, int(ranked[0])))
    return sorted(pieces, key=lambda piece: -piece.area)[:2]


def _piece(mask: Mask, colour: int) -> _Piece:
    rows, columns = np.nonzero(mask)
    return _Piece(float(len(rows)), (float(columns.mean()), float(rows.mean())), colour, mask)


def _components(mask: Mask) -> list[Mask]:
    """The two largest connected parts after opening, the larger first."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    order = sorted(range(1, count), key=lambda label: -stats[label, cv2.CC_STAT_AREA])[:2]
    return [labels == label for label in order]


def _describe(track: list[_Piece], shape: tuple[int, ...]) -> Sighting:
    height, width = shape[1:3]
    ends = max(1, len(track) // 6)
    areas = [piece.area for piece in track]
    colour = int(np.bincount([piece.colour for piece in track]).argmax())
    growth = float(np.sqrt(np.median(areas[-ends:]) / np.median(areas[:ends])))
    centres = np.array([piece.centre for piece in track]) / (width, height)
    first, last = centres[:ends].mean(0), centres[-ends:].mean(0)
    travel = last - first
    if max(growth, 1.0 / growth) > _GROWTH and np.abs(travel).max() < 0.25:
        action = "grow" if growth > 1.0 else "shrink"
    elif np.abs(travel).max() < _TRAVEL:
        action = "still"
    elif abs(travel[0]) > abs(travel[1]):
        action = "right" if travel[0] > 0 else "left"
    else:
        action = "down" if travel[1] > 0 else "up"
    return Sighting(
        colour=list(vocabulary().colours)[colour],
        shape=_shape([piece.mask for piece in track]),
        action=action,
        first=(float(first[0]), float(first[1])),
        last=(float(last[0]), float(last[1])),
    )


@cache
def _templates() -> dict[str, Array]:
    """Each shape, normalised as ``_normalised`` normalises masks."""
    templates = {}
    for shape in SHAPES:
        frames = np.zeros((1, 128, 128, 3), np.float32)
        actor = Actor(
            colour="white",
            shape=shape,
            action="still",
            start=(0.5, 0.5),
            end=(0.5, 0.5),
            radius_start=0.3,
            radius_end=0.3,
        )
        paint(frames, actor)
        templates[shape] = _normalised(frames[0, :, :, 0] > 0.5)
    return templates


def _normalised(mask: Mask) -> Array:
    """The mask moved and scaled to a fixed centre and a fixed area."""
    rows, columns = np.nonzero(mask)
    scale = 0.45 * _TEMPLATE / np.sqrt(len(rows))
    matrix = np.array(
        [
            [scale, 0.0, _TEMPLATE / 2 - scale * columns.mean()],
            [0.0, scale, _TEMPLATE / 2 - scale * rows.mean()],
        ],
        np.float32,
    )
    return np.asarray(cv2.warpAffine(mask.astype(np.float32), matrix, (_TEMPLATE, _TEMPLATE)), dtype=np.float32)


def _shape(masks: list[Mask]) -> str:
    """The shape whose template overlaps best over the frames where the object lies inside the frame."""
    whole = [mask for mask in masks if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())]
    chosen = sorted(whole or masks, key=lambda mask: -int(mask.sum()))[:8]
    scores = dict.fromkeys(SHAPES, 0.0)
    for mask in chosen:
        seen = _normalised(mask)
        for shape, template in _templates().items():
            scores[shape] += float(np.minimum(seen, template).sum() / np.maximum(seen, template).sum())
    return max(scores, key=lambda shape: scores[shape])


def _camera(frames: Array, foreground: Mask, mood: str) -> str:
    """The motion under which background pixels of one frame best predict those a few frames later."""
    count, height, width = foreground.shape
    short = min(height, width)
    flat = np.where(foreground[..., None], np.nan, frames - _light(height, width, mood)).mean(-1, dtype=np.float32)
    errors = dict.fromkeys(CAMERAS, 0.0)
    gap = max(1, (count - 1) // 5)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for start in range(0, count - gap, max(1, gap // 2)):
        share = gap / (count - 1)
        for camera in CAMERAS:
            shift = {"pan_left": -0.5, "pan_right": 0.5}.get(camera, 0.0) * share * short
            zoom = 1.9 ** ({"zoom_in": -1.0, "zoom_out": 1.0}.get(camera, 0.0) * share)
            source_x = (x + 0.5 - width / 2) * zoom + width / 2 - 0.5 + shift
            source_y = (y + 0.5 - height / 2) * zoom + height / 2 - 0.5
            seen = cv2.remap(
                flat[start],
                source_x,
                source_y,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=float("nan"),
            )
            difference = np.abs(seen - flat[start + gap])
            errors[camera] += float(np.nanmean(difference)) if np.isfinite(difference).any() else 0.0
    return min(errors, key=lambda camera: errors[camera])
