"""The embedded model: its world, the code that trained it, its evaluation and its weights."""
