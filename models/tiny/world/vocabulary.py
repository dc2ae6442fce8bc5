"""The names, colours and phrases of the world, read once from ``world.json``."""

import json
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

Colour = tuple[float, float, float]

LANGUAGES: Final = ("en", "zh", "ja")
SHAPES: Final = ("circle", "square", "triangle", "star")
ACTIONS: Final = ("left", "right", "up", "down", "still", "grow", "shrink")
CAMERAS: Final = ("static", "pan_left", "pan_right", "zoom_in", "zoom_out")
MOODS: Final = ("neutral", "bright", "dark")


class Scene(NamedTuple):
    """A background: two colours in 0..1 and the pattern that mixes them."""

    base: Colour
    texture: Colour
    pattern: str


class Vocabulary(NamedTuple):
    """Palette, scenes and phrases; ``phrases[language][slot][name]`` lists synonyms, the canonical one first."""

    colours: dict[str, Colour]
    scenes: dict[str, Scene]
    phrases: dict[str, dict[str, dict[str, list[str]]]]


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary of ``world.json``."""
    document = json.loads(resources.files(__package__).joinpath("world.json").read_text(encoding="utf-8"))
    return Vocabulary(
        colours={name: (rgb[0], rgb[1], rgb[2]) for name, rgb in document["colours"].items()},
        scenes={
            name: Scene(tuple(scene["base"]), tuple(scene["texture"]), scene["pattern"])
            for name, scene in document["scenes"].items()
        },
        phrases=document["phrases"],
    )


MINIMUM_CONTRAST: Final = 0.38


@cache
def visible_colours(scene: str) -> tuple[str, ...]:
    """Colours whose RGB distance to both colours of ``scene`` is above the contrast rule's 0.38."""
    words = vocabulary()
    backgrounds = (words.scenes[scene].base, words.scenes[scene].texture)

    def far(colour: Colour) -> bool:
        return all(
            sum((a - b) ** 2 for a, b in zip(colour, background, strict=True)) > MINIMUM_CONTRAST**2
            for background in backgrounds
        )

    return tuple(name for name, colour in words.colours.items() if far(colour))
