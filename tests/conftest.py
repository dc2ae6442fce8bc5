"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says something about the machine, not about the suite.
settings.register_profile("rushes", deadline=None)
settings.load_profile("rushes")
