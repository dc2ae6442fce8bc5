"""What rings when something has changed."""

from typing import Literal

QUEUE_TOPIC = "queue"
"""Rings when there may be something to claim."""


def topic(generation_id: str, what: Literal["event", "cancel"] = "event") -> str:
    """Rings when a generation has a new event, or is to be cancelled."""
    return f"{what}:{generation_id}"
