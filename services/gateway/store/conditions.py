"""Conditions that the partial indexes serve: written out, not bound, since a planner must read them to use an index."""

from sqlalchemy import text

from services.gateway.store.transitions import State

QUEUED = text(f"generations.state = {State.QUEUED:d}")
RUNNING = text(f"generations.state = {State.RUNNING:d}")
