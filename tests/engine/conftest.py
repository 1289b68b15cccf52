"""Settings of the engine's property tests."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # machines are busy; time is not what is tested
settings.load_profile("no deadline")
