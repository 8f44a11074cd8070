"""The supervisor of a host's ranks: starts them, starts them again, waits for a scheduler that went away, drains them on SIGTERM."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from landmark_batch.errors import ConfigError, GroupError, LandmarkError
from landmark_batch.workflows.host_rank import CLOSE, DRAIN, run_rank
from landmark_batch.workflows.hosts import Rank
from landmark_batch.workflows.security import split_address

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
DRAIN_SECONDS = 600.0
_LOOK_SECONDS = 0.2
_PROBE_SECONDS = 1.0
_CLOSE_SECONDS = 20.0
_LONGEST_PAUSE = 30.0


class SchedulerLostError(GroupError):
    """No scheduler answered for as long as the supervisor was told to wait."""

    exit_code = 1


@dataclass
class _Slot:
    """A rank and its process now. failures: starts in a row that came to nothing. due: not started again before then."""

    rank: Rank
    process: SpawnProcess | None = None
    link: Connection | None = None
    up: bool = False
    dismissed: bool = False
    failures: int = 0
    due: float = 0.0
    words: list[tuple[str, str]] = field(default_factory=list)


class Supervisor:
    """Keeps a host's ranks connected to one scheduler, whoever dies.

    ranks: all of one scheduler. patience: seconds without a scheduler before it gives up. drain_seconds: of finishing chunks in
    hand after SIGTERM. tell: one line for people. over: asked every second; true when there is nothing more to do.
    """

    def __init__(
        self,
        ranks: Sequence[Rank],
        *,
        tell: Callable[[str], None],
        patience: float = PATIENCE_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
        over: Callable[[], bool] | None = None,
    ) -> None:
        self._slots = [_Slot(rank) for rank in ranks]
        self._scheduler = ranks[0].scheduler
        self._tls = ranks[0].tls
        self._tell = tell
        self._patience = patience
        self._drain_seconds = drain_seconds
        self._over = over
        self._over_at = 0.0
        self._asked: list[int] = []  # signals that came, in order
        self._ever = self._closing = False
        self._seen_at = time.monotonic()
        self._waiting = False
        self._trouble = ""

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """The first call drains and ends the ranks, the second ends them at once. Also the handler of SIGTERM and SIGINT."""
        self._asked.append(number)

    def run(self, *, signals: bool = True) -> int:
        """signals: SIGTERM and SIGINT stop it, else they are ignored.

        Returns 0 when the job is over or the scheduler wants none of the ranks, 3 after SIGTERM, 130 after Ctrl-C.

        Raises SchedulerLostError after `patience` seconds without a scheduler, ConfigError where TLS is refused from the start.
        """
        handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handler = self.stop if signals else signal.SIG_IGN
            handlers = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = self._watch()
            if code is None:
                self._drain()
                code = 130 if self._asked[0] == signal.SIGINT else 3
            else:
                self._close()
            return code
        except LandmarkError:
            self._close()
            raise
        finally:
            for slot in self._slots:
                if slot.process is not None and slot.process.is_alive():
                    slot.process.kill()  # its worker dies with it
                    slot.process.join()
            for number, before in handlers.items():
                signal.signal(number, before)

    # -- while it runs

    def _watch(self) -> int | None:
        """Until asked to stop (None) or there is nothing left to do (exit code)."""
        while not self._asked:
            self._look()
            now = time.monotonic()
            if any(slot.up for slot in self._slots):
                self._seen_at, self._waiting, self._ever = now, False, True
            if all(slot.dismissed for slot in self._slots):
                self._tell("the scheduler took every rank of this host out of service")
                return 0
            idle = [slot for slot in self._slots if slot.process is None and not slot.dismissed and slot.due <= now]
            if self._over is not None and now >= self._over_at:
                if self._over():
                    return 0
                self._over_at = now + _PROBE_SECONDS
            if idle and self._answers():
                for slot in idle:
                    self._start(slot)
            elif idle:
                self._wait_for_scheduler(idle, now)
            if now - self._seen_at > self._patience:
                reason = f" ({self._trouble})" if self._trouble else ""
                raise SchedulerLostError(
                    f"no scheduler at {self._scheduler} for {self._patience:.0f} s{reason}",
                    remedy="start `landmark-batch scheduler` there and this command again; --patience sets how long it waits",
                )
        return None

    def _wait_for_scheduler(self, idle: Sequence[_Slot], now: float) -> None:
        if not self._waiting and not any(slot.up for slot in self._slots):
            self._waiting = True
            self._tell(f"no scheduler answers at {self._scheduler}: waiting up to {self._patience:.0f} s")
        for slot in idle:
            slot.due, slot.failures = now + _PROBE_SECONDS, 0

    def _answers(self) -> bool:
        """Whether something listens there, and speaks TLS that these credentials fit, if they are used."""
        _, host, port = split_address(self._scheduler)
        try:
            with socket.create_connection((host, int(port or 0)), timeout=5) as connection:
                if self._tls is None:
                    return True
                context = self._tls.security().get_connection_args("worker")["ssl_context"]
                with context.wrap_socket(connection):
                    return True
        except ssl.SSLError as error:
            if not self._ever:
                raise ConfigError(
                    f"{self._scheduler} refuses TLS with these credentials: {error.reason or error}",
                    remedy="give the scheduler's authority with --tls-ca-file, and a certificate that it signed",
                ) from None
            return False
        except OSError:
            return False

    def _start(self, slot: _Slot) -> None:
        context = multiprocessing.get_context("spawn")
        slot.link, theirs = context.Pipe()
        slot.process = context.Process(target=run_rank, args=(slot.rank, theirs, self._drain_seconds), name=f"rank {slot.rank.name}")
        slot.process.start()
        theirs.close()

    def _look(self) -> None:
        """Wait a moment for words and deaths of ranks, and take note of them."""
        living = [slot for slot in self._slots if slot.process is not None]
        links = [slot.link for slot in living if slot.link is not None]
        sentinels = [slot.process.sentinel for slot in living if slot.process is not None]
        if links or sentinels:
            wait([*links, *sentinels], timeout=_LOOK_SECONDS)
        else:
            time.sleep(_LOOK_SECONDS)
        for slot in living:
            self._listen(slot)
            if slot.process is not None and not slot.process.is_alive():
                self._listen(slot)
                self._ended(slot)

    def _listen(self, slot: _Slot) -> None:
        while slot.link is not None:
            try:
                if not slot.link.poll():
                    return
                word, text = slot.link.recv()
            except (EOFError, OSError):
                slot.link.close()
                slot.link = None
                return
            slot.words.append((word, text))
            if word == "up":
                slot.up, slot.failures = True, 0
                self._trouble = ""
                self._tell(f"{slot.rank.name} is at {self._scheduler} as {text}")

    def _ended(self, slot: _Slot) -> None:
        """A rank's process is gone: say why, and when it starts again."""
        assert slot.process is not None
        word, text = slot.words[-1] if slot.words else ("", "")
        code = slot.process.exitcode
        slot.process.join()
        if slot.link is not None:
            slot.link.close()
        slot.process, slot.link, slot.up, slot.words = None, None, False, []
        if word == "dismissed":
            slot.dismissed = True
            self._tell(f"{slot.rank.name}: {text}")
            return
        if word == "lost":
            slot.failures = 0
        elif word == "failed":
            slot.failures += 1
            self._trouble = text
            logger.warning("%s did not start: %s", slot.rank.name, text)
        elif not self._closing:
            slot.failures += 1
            logger.warning(
                "the nanny of %s ended (%s): started again", slot.rank.name, f"signal {-code}" if code and code < 0 else f"code {code}"
            )
        slot.due = time.monotonic() + (min(_LONGEST_PAUSE, 2.0 ** (slot.failures - 1)) if slot.failures > 1 else 0.0)

    # -- the end

    def _drain(self) -> None:
        self._tell("draining: chunks in hand are finished, no more are taken; once more ends at once")
        self._send(DRAIN)
        end = time.monotonic() + self._drain_seconds + _CLOSE_SECONDS
        while any(slot.process is not None for slot in self._slots) and len(self._asked) < 2 and time.monotonic() < end:
            self._look()

    def _close(self) -> None:
        self._send(CLOSE)
        end = time.monotonic() + _CLOSE_SECONDS
        while any(slot.process is not None for slot in self._slots) and len(self._asked) < 2 and time.monotonic() < end:
            self._look()

    def _send(self, word: str) -> None:
        self._closing = True
        for slot in self._slots:
            if slot.link is not None:
                try:
                    slot.link.send(word)
                except OSError:
                    pass  # it is ending
