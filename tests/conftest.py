"""Settings that must stand before scipy and torch are imported by a test."""

import os

# scikit-learn skips its array-API checks unless this is set when scipy is first imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

# In CI the same examples in every run, so that a red run is the change's; at home new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
