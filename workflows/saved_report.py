"""Reports of benches as files."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

from landmark_batch.errors import ConfigError


class SavedReport:
    """What can be kept as JSON."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""

    def save(self, path: Path) -> Path:
        """Write the report as JSON. Returns the path. Raises ConfigError where it cannot be written."""
        try:
            path.write_text(json.dumps(self.as_dict(), indent=2), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot write it: {error.strerror or error}", remedy="name a file in a folder you may write to"
            ) from None
        return path
