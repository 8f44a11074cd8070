"""Values of a job that were said on the command line: what they set, and how they were said, for errors to name."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from landmark_batch.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """text: 'section.key=value', the value in TOML (bare words are strings). said: as it stood on the command line."""

    text: str
    said: str


@dataclass
class Overrides:
    """values: section -> key -> value (or key -> value). said: 'section.key' -> how it was said."""

    values: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def origin(self, place: str, source: str) -> str:
        """Who said the value at 'section.key' (or deeper): the command line, else `source`. Of a whole section both, where both did."""
        for key, said in self.said.items():
            if place == key or place.startswith((f"{key}.", f"{key}[")):
                return said
        inside = [said for key, said in self.said.items() if key.startswith(f"{place}.")]
        return f"{source} with {' '.join(inside)}" if inside else source


def read_overrides(texts: Iterable[str | Override], sections: Collection[str]) -> Overrides:
    """texts: plain ones are values of --set. sections: known names. Raises ConfigError for what is not section.key=value."""
    found = Overrides()
    for item in texts:
        one = item if isinstance(item, Override) else Override(item, f"--set {item}")
        key, equals, value = one.text.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts) or len(parts) > 2:
            raise ConfigError(f"--set {one.text!r}: not of the form section.key=value", remedy="for example --set sampling.samples=128")
        try:
            parsed = tomllib.loads(f"v = {value.strip()}")["v"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        if not isinstance(parsed, str | int | float | list | dict):  # TOML reads 2026-01-31 as a date
            parsed = value.strip()
        target = found.values.setdefault(parts[0], {}) if len(parts) == 2 else found.values
        if not isinstance(target, dict):
            raise ConfigError(f"--set {one.text!r}: {parts[0]} is no section", remedy=f"sections: {', '.join(sections)}")
        target[parts[-1]] = parsed
        found.said[".".join(parts)] = one.said
    return found
