"""Why a group of processes ended: by the last words of its ranks and the exit codes that their nannies saw."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landmark_batch import errors
from landmark_batch.errors import LandmarkError
from landmark_batch.workflows.member import AFTER_GROUP_EXIT

WAIT_SECONDS = 2.0  # for last words and exit codes to come in
_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


@dataclass(frozen=True)
class Cause:
    """own: what the processes were doing ended them; False: somebody, or the system, killed one, or a host is gone. excused: it is held
    against nothing, since the next group takes fewer slots.
    """

    own: bool
    text: str
    excused: bool = False


class Causes:
    """By group key. log: the file to look into, for people."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._reports: dict[str, Mapping[str, Any]] = {}
        self._exits: dict[str, list[tuple[str, int]]] = {}

    def report(self, key: str, message: Mapping[str, Any]) -> None:
        """Last words of a rank; of several, the first that failed by itself counts."""
        known = self._reports.get(key)
        if known is None or (message.get("own") and not known.get("own")):
            self._reports[key] = dict(message)

    def exit(self, key: str, name: str, code: int) -> None:
        self._exits.setdefault(key, []).append((name, code))

    def rank(self, key: str) -> int | None:
        """The rank that failed by itself."""
        report = self._reports.get(key)
        return int(report["rank"]) if report is not None and report.get("own") else None

    def text(self, key: str) -> str:
        report = self._reports.get(key)
        if report is None:
            return ""
        if report.get("fewer"):
            return str(report["fewer"])
        chunk = f", chunk {report['chunk']}" if report.get("chunk") else ""
        log = f" (log: {self._log})" if self._log else ""
        return f"rank {report['rank']} on {report.get('host', '')}/{report['name']}{chunk}: {report['failed']}{log}"

    def find(self, key: str, reason: str, waited: float) -> Cause | None:
        """waited: seconds since the group was seen to end. None while more may come."""
        report = self._reports.get(key)
        if report is not None and report.get("own"):
            return Cause(True, self.text(key), excused=bool(report.get("fewer")))
        exits = self._exits.get(key, [])
        crashed = [(name, code) for name, code in exits if code not in (0, AFTER_GROUP_EXIT, *_OUTSIDE)]
        if crashed:
            name, code = crashed[0]
            return Cause(True, f"the process of {name} {_how(code)}" + (f" (log: {self._log})" if self._log else ""))
        if waited < WAIT_SECONDS:
            return None
        killed = [(name, code) for name, code in exits if code in _OUTSIDE]
        if killed:
            name, code = killed[0]
            return Cause(False, f"the process of {name} {_how(code)}, by somebody or by the system if memory ran out")
        return Cause(False, self.text(key) or reason)


def error_of(message: Mapping[str, Any]) -> BaseException:
    """The error that a rank told of, of its own kind where it is one of ours."""
    kind = getattr(errors, str(message.get("kind", "")), None)
    if isinstance(kind, type) and issubclass(kind, LandmarkError):
        return kind(str(message["message"]), remedy=str(message.get("remedy")) or None)
    return RuntimeError(f"rank {message.get('rank')} on {message.get('name')}: {message['failed']}")


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
