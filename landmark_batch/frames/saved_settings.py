"""Settings of frames, kept in their store under their digest, so that a later job can say what differs."""

from __future__ import annotations

from landmark_batch.object_path import StorePath

from . import durable
from .fingerprint import FrameSettings
from .layout import StoreLayout
from .sealed import seal


def settings_file(layout: StoreLayout, digest: str) -> StorePath:
    return layout.settings / f"{digest}.json"


def save_settings(layout: StoreLayout, settings: FrameSettings) -> None:
    """Keep settings under their digest, so that a later job can say what differs. Raises StoreError."""
    durable.replace_file(settings_file(layout, settings.digest), seal({"settings": settings.values}))
