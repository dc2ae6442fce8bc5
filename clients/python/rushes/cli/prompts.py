"""`rushes prompts`: things to ask the embedded model for, in its three languages."""

import json
import sys
from importlib import resources

from rushes.cli.refusal import CommandRefused
from rushes.cli.reports.json_lines import print_json

SAMPLES = (
    ("red", "circle", "left", "sea", "neutral"),
    ("blue", "star", "down", "snow", "bright"),
    ("yellow", "triangle", "up", "night", "neutral"),
    ("purple", "square", "grow", "desert", "bright"),
    ("white", "circle", "right", "night", "dark"),
    ("orange", "star", "shrink", "meadow", "neutral"),
)
"""Colour, shape, action, scene and mood: names of the embedded model's world."""

ORDERS = {
    "en": "a {color} {shape} {act} {scene}",
    "zh": "一个{color}的{shape}{act}，{scene}",
    "ja": "{color}{shape}が{scene}{act}",
}
MOODS = {"en": ", {}", "zh": "，{}", "ja": "、{}"}


def print_prompts(language: str | None, *, as_json: bool) -> None:
    """Print every sample in the language, or in each."""
    if language is not None and language not in ORDERS:
        raise CommandRefused("--language", f"must be one of {', '.join(ORDERS)}")
    for one in (language,) if language else ORDERS:
        for text in samples(one):
            if as_json:
                print_json("prompt", language=one, text=text)
            else:
                sys.stdout.write(text + "\n")


def samples(language: str) -> list[str]:
    """The samples in the words of the embedded model's world."""
    world = resources.files("models.tiny.world").joinpath("world.json")
    words: dict[str, dict[str, list[str]]] = json.loads(world.read_text(encoding="utf-8"))["phrases"][language]
    texts = []
    for colour, shape, action, scene, mood in SAMPLES:
        said = {"color": colour, "shape": shape, "act": action, "scene": scene}
        text = ORDERS[language].format(**{slot: words[slot][name][0] for slot, name in said.items()})
        feeling = words["mood"][mood][0]
        text += MOODS[language].format(feeling) if feeling else ""
        texts.append("an" + text[1:] if language == "en" and text[2] in "aeiou" else text)
    return texts
