"""Reports of benches as files."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

from landmark_batch.errors import cannot_write


class SavedReport:
    """What can be kept as JSON."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""

    def save(self, path: Path) -> Path:
        """Write the report as JSON. Returns the path. Raises ConfigError where it cannot be written, DiskFullError without space."""
        try:
            path.write_text(json.dumps(self.as_dict(), indent=2), encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from None
        return path
