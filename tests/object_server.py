"""An S3 server on this machine (moto's), and a relay before it that loses answers, refuses requests or takes conditions away."""

from __future__ import annotations

import http.client
import http.server
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

# (method, path, headers in lower case) -> None to pass it on, 'lose' to pass it on and break off, 'plain' to take its conditions away,
# or the status and body to answer with.
Fault = Callable[[str, str, dict[str, str]], "str | tuple[int, bytes] | None"]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class ObjectServer:
    """address: for AWS_ENDPOINT_URL."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
        started = False
        while not started:  # another process may take the port before moto does
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            self.address = f"http://127.0.0.1:{self.port}"
            words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=self._log)
            started = self._answers()

    def _answers(self) -> bool:
        """False where its port was taken."""
        deadline = time.monotonic() + 100
        while self._process.poll() is None:
            assert time.monotonic() < deadline, "moto's server does not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            time.sleep(0.05)
        self._log.seek(0)
        told = self._log.read()
        assert b"in use" in told, told
        return False

    def bucket(self) -> str:
        """A new, empty one: 's3://name'."""
        name = f"b{secrets.token_hex(6)}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT")):
            return f"s3://{name}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    @contextmanager
    def relay(self, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> Iterator[str]:
        """A bucket of its own, reached through a relay with this fault."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _relay(self.port, fault))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield self.bucket()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _relay(port: int, fault: Fault) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            what = fault(self.command, self.path, {name.lower(): value for name, value in headers.items()})
            if isinstance(what, tuple):
                return self._answer(what[0], {"Content-Type": "application/xml"}, what[1])
            if what == "plain":
                headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                data = response.read()
            finally:
                connection.close()
            if what == "lose":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
            kept = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            }
            return self._answer(response.status, kept, data)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    return Handler


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    """Runs while the tests run; the environment points at it."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    server = ObjectServer()
    before = pytest.MonkeyPatch()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.address}.items():
        before.setenv(name, value)
    try:
        yield server
    finally:
        before.undo()
        server.close()


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    """A new, empty bucket: 's3://name'."""
    return object_server.bucket()


def environment() -> dict[str, str]:
    """What a process that was started before the server needs of it."""
    return {name: os.environ[name] for name in (*KEYS, "AWS_ENDPOINT_URL")}
