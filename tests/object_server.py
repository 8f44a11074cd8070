"""Object stores on this machine, each a real server of its kind: moto for S3, fake-gcs-server for Google, Azurite for Azure."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import pytest

from tests.object_relay import Fault, Forward, forward_to, relaying

SERVICES = ("s3", "gs", "az")
_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")


def on(*services: str) -> pytest.MarkDecorator:
    """Runs a test that takes `object_server` or `bucket` on these; without it, on S3."""
    return pytest.mark.parametrize("object_server", services, indirect=True)


every_service = on(*SERVICES)


class ServerProcess:
    """A server on a free port. words: its command line by port."""

    def __init__(self, words: Callable[[int], list[str]], environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
        self._folder = tempfile.TemporaryDirectory()
        started = False
        while not started:  # another process may take the port before the server does
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            self._process = subprocess.Popen(
                words(self.port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                cwd=self._folder.name,
                env={**os.environ, **(environment or {})},
            )
            started = self._answers()
        self.address = f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        """False where its port was taken."""
        deadline = time.monotonic() + 100
        while self._process.poll() is None:
            assert time.monotonic() < deadline, "the server does not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            time.sleep(0.05)
        self._log.seek(0)
        told = self._log.read()
        assert b"in use" in told, told
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()


class ObjectServer(ABC):
    """scheme: of its URLs. credential: the environment variable that its users need first. address: where they send requests."""

    scheme: str
    credential: str
    address: str

    @abstractmethod
    def settings(self, address: str, *, key: str = "") -> dict[str, str]:
        """The environment variables of a user whose requests go to `address`. key: in place of the account's."""

    @abstractmethod
    def another_key(self) -> str:
        """One that is as good as the account's, and is not."""

    def forward(self) -> Forward:
        """How a relay before it passes requests on."""
        return forward_to(int(self.address.rpartition(":")[2]))

    @abstractmethod
    def bucket(self) -> str:
        """A new, empty one: 's3://name'."""

    @abstractmethod
    def close(self) -> None:
        """End it."""

    @contextmanager
    def relay(self, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> Iterator[str]:
        """A bucket of its own, reached through a relay with this fault."""
        with relaying(self.forward(), fault) as address:
            for name, value in self.settings(address).items():
                monkeypatch.setenv(name, value)
            yield self.bucket()


class AmazonServer(ObjectServer):
    scheme = "s3"
    credential = "AWS_ACCESS_KEY_ID"

    def __init__(self) -> None:
        pytest.importorskip("moto")
        self._process = ServerProcess(lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
        self.address = self._process.address

    def settings(self, address: str, *, key: str = "") -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": key or "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": address}

    def another_key(self) -> str:
        return "another"  # moto takes any

    def bucket(self) -> str:
        name = f"b{secrets.token_hex(6)}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT")):
            return f"s3://{name}"

    def close(self) -> None:
        self._process.close()


def _start(service: str) -> ObjectServer:
    if service == "gs":
        from tests.object_google import GoogleServer

        return GoogleServer()
    if service == "az":
        from tests.object_azure import AzureServer

        return AzureServer()
    return AmazonServer()


@pytest.fixture(scope="session")
def object_servers() -> Iterator[dict[str, ObjectServer]]:
    """Those that tests have started; they run until all tests have."""
    servers: dict[str, ObjectServer] = {}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.close()


@pytest.fixture
def no_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names none while the test runs."""
    pytest.importorskip("obstore")
    for name in environment():
        monkeypatch.delenv(name)


@pytest.fixture
def object_server(
    request: pytest.FixtureRequest, object_servers: dict[str, ObjectServer], no_object_store: None, monkeypatch: pytest.MonkeyPatch
) -> ObjectServer:
    """While the test runs, the environment points at it, and at no other object store."""
    service = getattr(request, "param", "s3")
    if service not in object_servers:
        object_servers[service] = _start(service)
    server = object_servers[service]
    for name, value in server.settings(server.address).items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    """A new, empty bucket: 's3://name'."""
    return object_server.bucket()


def environment() -> dict[str, str]:
    """What a process that was started before the server needs of it."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
