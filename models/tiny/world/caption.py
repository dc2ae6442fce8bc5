"""Captions in English, Chinese and Japanese: subject, action, scene, camera, mood, in several words and orders."""

import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from models.tiny.world.clip import Actor, Clip
from models.tiny.world.vocabulary import vocabulary

SLOTS: Final = ("action", "scene", "camera", "mood")
_EVALUATION_SHARE: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A prompt and which of its clip's attributes it says; colour and shape are always said."""

    text: str
    language: str
    said: frozenset[str]

    @property
    def unseen(self) -> bool:
        """Whether this exact text is kept for evaluation: one text in sixteen, by its checksum."""
        return zlib.crc32(self.text.encode()) % _EVALUATION_SHARE == 0


def draw_caption(
    rng: np.random.Generator, clip: Clip, language: str, *, unseen: bool = False, partial: float = 0.0
) -> Caption:
    """A random caption of ``clip``.

    ``partial`` is the chance of leaving some attributes unsaid; ``unseen`` selects texts kept for evaluation.
    """
    while True:
        said = {slot for slot in SLOTS if rng.random() < 0.5} if rng.random() < partial else set(SLOTS)
        text = _compose(rng, clip, language, said)
        caption = Caption(text=text, language=language, said=frozenset(said))
        if caption.unseen == unseen or caption.said != frozenset(SLOTS):
            return caption


def canonical_caption(clip: Clip, language: str) -> str:
    """The caption with every canonical phrase in the standard order."""
    return _compose(None, clip, language, set(SLOTS))


class _Parts(NamedTuple):
    subjects: list[str]
    acts: list[str]
    scene: str
    camera: str
    mood: str


def _compose(rng: np.random.Generator | None, clip: Clip, language: str, said: set[str]) -> str:
    words = vocabulary().phrases[language]

    def pick(slot: str, name: str) -> str:
        options = words[slot][name]
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    def order(count: int) -> int:
        return 0 if rng is None else int(rng.integers(count))

    def subject(actor: Actor) -> str:
        colour, shape = pick("color", actor.colour), pick("shape", actor.shape)
        if language == "en":
            article = ("a", "one")[order(2)]
            return f"{'an' if article == 'a' and colour[0] in 'aeiou' else article} {colour} {shape}"
        if language == "zh":
            return ("一个{}的{}", "{}的{}", "一个{}{}")[order(3)].format(colour, shape)
        return f"{colour}{shape}"

    scene = pick("scene", clip.scene) if "scene" in said else ""
    camera = pick("cam", clip.camera) if "camera" in said else ""
    mood = pick("mood", clip.mood) if "mood" in said else ""
    acts = [pick("act", actor.action) if "action" in said else "" for actor in clip.actors]
    subjects = [subject(actor) for actor in clip.actors]
    compose = {"en": _english, "zh": _chinese, "ja": _japanese}[language]
    return compose(_Parts(subjects, acts, scene, camera, mood), order(3))


def _english(parts: _Parts, order: int) -> str:
    subjects, acts, scene, camera, mood = parts
    action = " and ".join(f"{subject} {act}".strip() for subject, act in zip(subjects, acts, strict=True))
    if order == 1:
        return _join(", ", scene, action, camera, mood)
    if order == 2:
        return _join(", ", mood, f"{action} {scene}".strip(), camera)
    return _join(", ", f"{action} {scene}".strip(), camera, mood)


def _chinese(parts: _Parts, order: int) -> str:
    subjects, acts, scene, camera, mood = parts
    action = "，".join(f"{subject}{act}" for subject, act in zip(subjects, acts, strict=True))
    if order == 1:
        return _join("，", scene, action, camera, mood)
    if order == 2:
        return _join("，", mood, scene + action, camera)
    return _join("，", action, scene, camera, mood)


def _japanese(parts: _Parts, order: int) -> str:
    subjects, acts, scene, camera, mood = parts
    clauses = [f"{subject}が{act}" if act else subject for subject, act in zip(subjects, acts, strict=True)]
    action = "、".join(clauses)
    if order == 1:
        return _join("、", scene, action, camera, mood)
    if order == 2:
        return _join("、", mood, scene + action, camera)
    first = f"{subjects[0]}が{scene}{acts[0]}" if acts[0] else scene + subjects[0]
    return _join("、", "、".join([first, *clauses[1:]]), camera, mood)


def _join(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)
