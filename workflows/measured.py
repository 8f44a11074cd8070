"""How fast this machine has rendered before: measured seconds per megasample, and probes of jobs, kept in the user's cache.

A plan gives a time only from here; nothing is guessed. A megasample is a million of rays × samples a ray as the job sets
them (what the mask spares is part of the measured rate, so rates of the scene itself are preferred to those of another).
A frame has costs of its own beside its samples, so the rate of thumbnails says nothing of full frames: only frames alike count.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

logger = logging.getLogger(__name__)

_KEPT = 200  # rates, the oldest go first
_KEPT_PROBES = 50
_ALIKE = 16.0  # times as many samples a frame, or as few, for which a rate holds
_SAME = 2.0  # or for which a newer rate takes its place
_RATE = frozenset({"key", "scene", "seconds_per_megasample", "megasamples", "at"})
_PROBE = frozenset({"key", "probe", "at"})


@dataclass(frozen=True)
class SpeedKey:
    """What a rate holds for. device: name of the CPU or GPU. workers: how many rendered beside each other."""

    host: str
    device: str
    workers: int
    runtime: str
    precision: str
    mode: str

    def __str__(self) -> str:
        return f"{self.host}|{self.device}|{self.workers}|{self.runtime}|{self.precision}|{self.mode}"


@dataclass(frozen=True)
class Speed:
    """seconds_per_megasample: of one worker. same_scene: measured on this very scene."""

    seconds_per_megasample: float
    same_scene: bool

    def seconds(self, frames: int, pixels: int, samples: int, workers: int) -> float:
        """Wall time of rendering, start-up left out."""
        return self.seconds_per_megasample * frames * pixels * samples / 1e6 / max(1, workers)


def speed_file() -> Path:
    return platformdirs.user_cache_path("landmark-batch") / "speed.json"


def recall_speed(key: SpeedKey, scene: str, megasamples: float, *, file: Path | None = None) -> Speed | None:
    """The rate measured for `key` of frames most like those of a plan; of this scene (its digest) if there is one, else of another.

    megasamples: of one frame of the plan. None where only frames of quite another size were rendered.
    """
    alike = [entry for entry in _rates(file or speed_file()) if entry["key"] == str(key) and _apart(entry, megasamples) <= math.log(_ALIKE)]
    for same_scene, chosen in ((True, [e for e in alike if e["scene"] == scene]), (False, alike)):
        if chosen:
            nearest = min(chosen, key=lambda entry: (_apart(entry, megasamples), -float(entry["at"])))
            return Speed(float(nearest["seconds_per_megasample"]), same_scene)
    return None


def record_speed(key: SpeedKey, scene: str, seconds_per_megasample: float, megasamples: float, *, file: Path | None = None) -> None:
    """Keep a rate, in place of older ones of about the same frames. megasamples: of one frame.

    A cache that cannot be written is no error: the next plan then says 'unknown'.
    """
    file = file or speed_file()

    def replaced(entry: Mapping[str, Any]) -> bool:
        return (entry["key"], entry["scene"]) == (str(key), scene) and _apart(entry, megasamples) <= math.log(_SAME)

    entries = [entry for entry in _rates(file) if not replaced(entry)]
    rate = {"seconds_per_megasample": seconds_per_megasample, "megasamples": megasamples}
    entries.append({"key": str(key), "scene": scene, **rate, "at": time.time()})
    _write(file, entries, _KEPT)


def _rates(file: Path) -> list[dict[str, Any]]:
    """What was kept, but for numbers that nobody can have measured."""

    def is_rate(number: object) -> bool:
        return isinstance(number, int | float) and 0 < number < math.inf

    return [entry for entry in _read(file, _RATE) if is_rate(entry["seconds_per_megasample"]) and is_rate(entry["megasamples"])]


def _apart(entry: Mapping[str, Any], megasamples: float) -> float:
    """How far a rate's frames are from others: the logarithm of how many times larger or smaller they are."""
    return abs(math.log(float(entry["megasamples"]) / megasamples))


def probe_file() -> Path:
    return platformdirs.user_cache_path("landmark-batch") / "probes.json"


def recall_probe(key: str) -> dict[str, Any] | None:
    """What was kept under `key`, None where nothing was."""
    return next((dict(entry["probe"]) for entry in _read(probe_file(), _PROBE) if entry["key"] == key), None)


def record_probe(key: str, probe: Mapping[str, Any]) -> None:
    """Keep what a probe found, JSON-ready, in place of an earlier one. A cache that cannot be written is no error."""
    entries = [entry for entry in _read(probe_file(), _PROBE) if entry["key"] != key]
    _write(probe_file(), [*entries, {"key": key, "probe": dict(probe), "at": time.time()}], _KEPT_PROBES)


def _write(file: Path, entries: list[dict[str, Any]], most: int) -> None:
    entries.sort(key=lambda entry: float(entry["at"]))
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries[-most:], indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        logger.info("%s: what was measured is not kept: %s", file, error)


def _read(file: Path, keys: frozenset[str]) -> list[dict[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [entry for entry in entries if keys <= entry.keys()]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
