"""Fleet: `landmark-batch scheduler` and `landmark-batch worker` as real processes, started again by hand as systemd would do it.

A host is one `worker` command, a rank one of its worker processes: host 'a' with two ranks has 'a-w0' and 'a-w1'. All of them share
this machine's loopback interface.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from landmark_batch.workflows.host_scheduler import DRIVER
from landmark_batch.workflows.security import TlsCredentials
from tests.ports import free_port
from tests.workflows.processes import kill_tree, until

ROOT = Path(__file__).resolve().parents[2]
# The kernel ends the command with the thread that started it: nothing outlives a test run that is killed.
_BOOT = "import ctypes; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); from landmark_batch.cli import main; main()"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*words: str, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[Any]:
    """A landmark-batch command in a session of its own."""
    return subprocess.Popen([*prefix, sys.executable, "-c", _BOOT, *words], env=environment(), start_new_session=True, **options)


class Service:
    """A command that is started again 0.3 s after it ended, unless it was told to end."""

    def __init__(self, words: Sequence[str], out: Path, prefix: Sequence[str] = ()) -> None:
        self.words, self.out, self.prefix = list(words), out, list(prefix)
        self.process: subprocess.Popen[Any] | None = None
        self.wanted = False
        self.starts = 0

    def start(self) -> None:
        self.wanted = True
        self.starts += 1
        with self.out.open("ab") as out:
            self.process = command(*self.words, prefix=self.prefix, stdout=out, stderr=out)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL of the command and all below it, for good."""
        self.wanted = False
        if self.process is not None:
            kill_tree(self.process.pid)
            self.process.wait()


class Fleet:
    """A scheduler and hosts of so many ranks each. Use as a context manager: nothing is left of it afterwards.

    hosts: name -> ranks. listen: address of the scheduler. prefix: words before the command, by host ('ip netns exec far').
    """

    def __init__(
        self,
        folder: Path,
        hosts: Mapping[str, int],
        *,
        tls: TlsCredentials | None = None,
        listen: str = "127.0.0.1",
        prefix: Mapping[str, Sequence[str]] | None = None,
        patience: float = 600.0,
        dashboard: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tls = folder, tls
        port, self.dashboard_port = free_port(), free_port()
        self.address = f"{'tls' if tls else 'tcp'}://{listen}:{port}"
        self.credentials = ["--tls-ca-file", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key] if tls else []
        page = ["--dashboard-port", str(self.dashboard_port)] if dashboard else ["--no-dashboard"]
        words = ["scheduler", "--host", listen, "--port", str(port), *page, "--log", str(folder / "driver.log"), *self.credentials]
        self.services = {"scheduler": Service(words, folder / "scheduler.out")}
        for host, ranks in hosts.items():
            self.services[host] = self.service_of(host, ranks, prefix=(prefix or {}).get(host, ()), patience=patience)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="fleet", daemon=True)
        self._client: Client | None = None
        self.endings: list[Callable[[], None]] = []  # of what tests begin on it

    def service_of(self, host: str, ranks: int, *, prefix: Sequence[str] = (), patience: float = 600.0) -> Service:
        """The command of a host, not started. prefix: words before it."""
        log = ["--log", str(self.folder / f"{host}.log"), "--patience", f"{patience:g}"]
        words = ["worker", self.address, "--device", "cpu", "--workers", str(ranks), "--name", host, *log, *self.credentials]
        return Service(words, self.folder / f"{host}.out", prefix)

    def __enter__(self) -> Fleet:
        for service in self.services.values():
            service.wanted = True
        self._keeper.start()
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._client is not None:
            self._client.close(timeout=5)
        with self._lock:
            for service in self.services.values():
                service.kill()

    def _keep(self) -> None:
        """Start what is wanted and does not run."""
        while not self._ended.wait(0.3):
            with self._lock:
                for service in list(self.services.values()):
                    if service.wanted and not self._ended.is_set() and (service.process is None or service.ended()):
                        service.start()

    # -- what is there

    @property
    def client(self) -> Client:
        """A client that is connected; a new one where the scheduler went away."""
        if self._client is None or self._client.status != "running":
            if self._client is not None:
                self._client.close(timeout=1)
            security = self.tls.security() if self.tls else None
            self._client = Client(self.address, security=security, set_as_default=False, timeout=60)
        return self._client

    @property
    def names(self) -> set[str]:
        """Of all ranks that are wanted."""
        found = set()
        for host, service in self.services.items():
            if host != "scheduler" and service.wanted:
                found |= {f"{host}-w{number}" for number in range(int(service.words[service.words.index("--workers") + 1]))}
        return found

    def workers(self) -> dict[str, dict[str, Any]]:
        """Name -> what the scheduler knows of a rank, its address too; none while the scheduler does not answer."""
        try:
            identity = self.client.sync(self.client.scheduler.identity, callback_timeout=5)
        except (OSError, TimeoutError):
            return {}
        found = {str(info["name"]): {**info, "address": address} for address, info in identity["workers"].items()}
        return {name: info for name, info in found.items() if name != DRIVER}

    def rank(self, name: str) -> dict[str, Any]:
        """What the scheduler knows of a rank that is there."""
        found: dict[str, Any] = until(lambda: self.workers().get(name), 60, f"the scheduler tells of {name}")
        return found

    def settle(self) -> None:
        """What a test has left is ended."""
        while self.endings:
            self.endings.pop()()

    def wait(self, seconds: float = 240) -> None:
        """Until every wanted rank, and the driver's process, is there."""
        until(lambda: self._answers() and set(self.workers()) >= self.names and self._has_driver(), seconds, f"ranks {self.names}")

    def _answers(self) -> bool:
        host, _, port = self.address.partition("://")[2].rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                return True
        except OSError:
            return False

    def _has_driver(self) -> bool:
        identity = self.client.sync(self.client.scheduler.identity, callback_timeout=5)
        return any(info["name"] == DRIVER for info in identity["workers"].values())

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a rank's process."""
        address = self.rank(name)["address"]
        return self.client.run(function, *arguments, workers=[address])[address]

    def on_scheduler(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.run_on_scheduler(function, *arguments)

    # -- processes

    def pid(self, name: str) -> int:
        """Of a rank's worker process."""
        return int(self.run(name, os.getpid))

    def nanny(self, name: str) -> int:
        """Of the process that holds a rank's nanny."""
        return psutil.Process(self.pid(name)).ppid()

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def kill_driver(self) -> None:
        """It is started again by its nanny."""
        identity = self.client.sync(self.client.scheduler.identity)
        address = next(address for address, info in identity["workers"].items() if info["name"] == DRIVER)
        os.kill(self.client.run(os.getpid, workers=[address])[address], signal.SIGKILL)

    def kill_scheduler(self) -> None:
        """It is started again on the same port."""
        os.kill(self.services["scheduler"].pid, signal.SIGKILL)

    def terminate(self, host: str, seconds: float = 60) -> int:
        """SIGTERM to a host's command, which is not started again. Returns its exit code."""
        service = self.services[host]
        with self._lock:
            service.wanted = False
        assert service.process is not None
        service.process.terminate()
        return service.process.wait(seconds)

    def start(self, host: str) -> None:
        self.services[host].wanted = True

    def said(self, name: str) -> str:
        """What a host's or the scheduler's command printed."""
        return self.services[name].out.read_text()
