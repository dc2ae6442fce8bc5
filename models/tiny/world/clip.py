"""What a clip contains, and how clips are drawn at random for training and evaluation."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.tiny.world.vocabulary import ACTIONS, CAMERAS, MOODS, SHAPES, visible_colours, vocabulary

Point = tuple[float, float]

HELD_OUT_COLOUR_SHAPE: Final = frozenset(
    {("purple", "star"), ("cyan", "triangle"), ("orange", "square"), ("white", "circle")}
)
HELD_OUT_COLOUR_ACTION: Final = frozenset({("green", "shrink"), ("yellow", "up")})

_EXCHANGED: Final = 0.5
_OTHER_CAMERA: Final = 0.8
"""Upper ends of the shares of siblings whose colours are exchanged, and whose camera is another, where that can be."""

_DIRECTIONS: Final = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """One object. Centres are fractions of width and height, radii fractions of the shorter side."""

    colour: str
    shape: str
    action: str
    start: Point
    end: Point
    radius_start: float
    radius_end: float

    @property
    def held_out(self) -> bool:
        """Whether this combination of attributes never occurs in training."""
        return (self.colour, self.shape) in HELD_OUT_COLOUR_SHAPE or (
            self.colour,
            self.action,
        ) in HELD_OUT_COLOUR_ACTION


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Everything that the renderer needs, and therefore the ground truth of the rendered clip."""

    actors: tuple[Actor, ...]
    scene: str
    camera: str
    mood: str
    phase: Point

    @property
    def held_out(self) -> bool:
        """Whether any object has a combination that never occurs in training."""
        return any(actor.held_out for actor in self.actors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Shares of the harder kinds of clip; the zero mixture is one object under a static camera."""

    two_objects: float = 0.0
    moving_camera: float = 0.0


def draw_clip(rng: np.random.Generator, mixture: Mixture, *, held_out: bool = False) -> Clip:
    """A random clip; ``held_out`` selects clips with (True) or without (False) held-out combinations."""
    while True:
        clip = _draw_any_clip(rng, mixture)
        if clip.held_out == held_out:
            return clip


def draw_sibling(rng: np.random.Generator, clip: Clip) -> Clip:
    """The same clip with another camera, another shape of an object, or the colours of two objects exchanged.

    Learned from beside each other, under the same noise, the two differ in nothing but what a few words say.
    """
    while True:
        sibling = _draw_any_sibling(rng, clip)
        if sibling.held_out == clip.held_out:
            return sibling


def _draw_any_sibling(rng: np.random.Generator, clip: Clip) -> Clip:
    change = rng.random()
    if len(clip.actors) > 1 and change < _EXCHANGED:
        first, second = clip.actors
        return replace(clip, actors=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
    if clip.camera != "static" and change < _OTHER_CAMERA:
        return replace(clip, camera=str(rng.choice([camera for camera in CAMERAS if camera != clip.camera])))
    changed = int(rng.integers(len(clip.actors)))
    actors = list(clip.actors)
    others = [shape for shape in SHAPES if shape != actors[changed].shape]
    actors[changed] = replace(actors[changed], shape=str(rng.choice(others)))
    return replace(clip, actors=tuple(actors))


def _draw_any_clip(rng: np.random.Generator, mixture: Mixture) -> Clip:
    scene = str(rng.choice(list(vocabulary().scenes)))
    camera = str(rng.choice(CAMERAS[1:])) if rng.random() < mixture.moving_camera else "static"
    colours = visible_colours(scene)
    if rng.random() < mixture.two_objects:
        first, second = rng.choice(len(colours), 2, replace=False)
        actions = (str(rng.choice(ACTIONS)), str(rng.choice(ACTIONS)))
        actors = tuple(
            draw_actor(rng, colours[colour], str(rng.choice(SHAPES)), action, lane)
            for colour, action, lane in zip((first, second), actions, draw_lanes(rng, actions), strict=True)
        )
    else:
        actors = (draw_actor(rng, str(rng.choice(colours)), str(rng.choice(SHAPES)), str(rng.choice(ACTIONS)), None),)
    return Clip(
        actors=actors,
        scene=scene,
        camera=camera,
        mood=str(rng.choice(MOODS)),
        phase=(float(rng.random()), float(rng.random())),
    )


def draw_lanes(rng: np.random.Generator, actions: tuple[str, str]) -> tuple[str, str]:
    """Halves of the frame in which two objects with these actions stay apart."""
    horizontal = any(action in ("left", "right") for action in actions)
    vertical = any(action in ("up", "down") for action in actions)
    sides = bool(rng.integers(2)) if horizontal == vertical else vertical
    lanes = ("left", "right") if sides else ("top", "bottom")
    return lanes if rng.integers(2) else (lanes[1], lanes[0])


def draw_actor(rng: np.random.Generator, colour: str, shape: str, action: str, lane: str | None) -> Actor:
    """An object with random place and size; in a ``lane`` it is smaller and stays within its half."""
    centre_x, centre_y = rng.uniform(0.44, 0.56, 2)
    scale = 1.0
    if lane is not None:
        scale = 0.7
        centre_x = {"left": 0.25, "right": 0.75}.get(lane, centre_x)
        centre_y = {"top": 0.25, "bottom": 0.75}.get(lane, centre_y)
    radius_start = radius_end = rng.uniform(0.18, 0.24) * scale
    reach = 0.0
    if action in _DIRECTIONS:
        reach = rng.uniform(0.23, 0.27)
    elif action == "grow":
        radius_start, radius_end = rng.uniform(0.10, 0.12) * scale, rng.uniform(0.27, 0.31) * scale
    elif action == "shrink":
        radius_start, radius_end = rng.uniform(0.27, 0.31) * scale, rng.uniform(0.10, 0.12) * scale
    step_x, step_y = _DIRECTIONS.get(action, (0, 0))
    if (lane in ("left", "right") and step_x) or (lane in ("top", "bottom") and step_y):
        reach *= 0.4
    return Actor(
        colour=colour,
        shape=shape,
        action=action,
        start=(float(centre_x - step_x * reach), float(centre_y - step_y * reach)),
        end=(float(centre_x + step_x * reach), float(centre_y + step_y * reach)),
        radius_start=float(radius_start),
        radius_end=float(radius_end),
    )
