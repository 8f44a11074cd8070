"""Where a scene lies: a path on this machine, or a URL."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from landmark_batch.object_path import is_url

SceneLocation = Path | str  # a str is a URL, or a path that someone typed


def as_location(location: SceneLocation | os.PathLike[str]) -> SceneLocation:
    """A Path for everything on this machine (file:// too), the URL without a trailing slash for the rest."""
    if not isinstance(location, str) or not is_url(location):
        return Path(location)
    if location.lower().startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    return location.rstrip("/")
