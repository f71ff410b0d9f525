"""Settings of all tests."""

import os

from hypothesis import settings

# A run that decides whether a change may land tries the same examples every time; a
# developer's run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
