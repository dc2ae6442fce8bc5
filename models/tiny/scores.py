"""Scores of read-back clips against their ground truth, with confidence intervals."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

from models.tiny.read_back import Reading
from models.tiny.world.clip import Clip

ATTRIBUTES: Final = ("colour", "shape", "action", "scene", "mood", "camera", "count", "all")
_Z: Final = 1.96


def compare(clip: Clip, reading: Reading) -> dict[str, bool]:
    """Which attributes were read back right. One object: the largest sighting counts; two: they match by colour."""
    if len(clip.actors) == 1:
        seen = {clip.actors[0].colour: reading.sightings[0]} if reading.sightings else {}
    else:
        seen = {sighting.colour: sighting for sighting in reading.sightings}
    pairs = [(actor, seen.get(actor.colour)) for actor in clip.actors]
    right = {
        "colour": all(sighting is not None and sighting.colour == actor.colour for actor, sighting in pairs),
        "shape": all(sighting is not None and sighting.shape == actor.shape for actor, sighting in pairs),
        "action": all(sighting is not None and sighting.action == actor.action for actor, sighting in pairs),
        "scene": reading.scene == clip.scene,
        "mood": reading.mood == clip.mood,
        "camera": reading.camera == clip.camera,
        "count": len(reading.sightings) == len(clip.actors),
    }
    return {**right, "all": all(right.values())}


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    reach = _Z * sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / (1 + _Z**2 / total)
    return max(0.0, centre - reach), min(1.0, centre + reach)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Hits by attribute, and what was read back, so that a base rate cannot pass for control."""

    total: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    seen: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, clip: Clip, reading: Reading) -> None:
        """Counts one clip."""
        self.total += 1
        self.hits.update(name for name, right in compare(clip, reading).items() if right)
        for sighting in reading.sightings[: len(clip.actors)]:
            self.seen["shape"][sighting.shape] += 1
            self.seen["action"][sighting.action] += 1

    def share(self, attribute: str) -> float:
        """The share of clips with this attribute right."""
        return self.hits[attribute] / max(self.total, 1)

    def report(self) -> dict[str, object]:
        """Shares with intervals, and the histograms."""
        shares = {
            name: {
                "share": round(self.share(name), 4),
                "interval": [round(bound, 4) for bound in wilson(self.hits[name], self.total)],
            }
            for name in ATTRIBUTES
        }
        return {"clips": self.total, **shares, "read_back": {name: dict(seen) for name, seen in self.seen.items()}}
