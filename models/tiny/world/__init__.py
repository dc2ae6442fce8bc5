"""A procedural world of coloured shapes: deterministic clips, captions in three languages, ground truth for both."""
