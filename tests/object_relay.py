"""A relay before a server: passes requests on, or answers, loses or changes them as a test says."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# (method, path, headers in lower case) -> None to pass it on, 'lose' to pass it on and break off, 'plain' to take its conditions away,
# or the status and body to answer with.
Fault = Callable[[str, str, dict[str, str]], "str | tuple[int, bytes] | None"]
Answer = tuple[int, Mapping[str, str], bytes]
Forward = Callable[[str, str, dict[str, str], bytes], Answer]  # (method, path, headers, body)


def forward_to(port: int) -> Forward:
    """Requests as they are, to a port of this machine."""

    def forward(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    return forward


@contextmanager
def relaying(forward: Forward, fault: Fault | None = None) -> Iterator[str]:
    """Its address, while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(forward, fault or (lambda method, path, headers: None)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_condition(header: str) -> bool:
    return header.lower().removeprefix("x-goog-").startswith("if-")


def _handler(forward: Forward, fault: Fault) -> type[http.server.BaseHTTPRequestHandler]:
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
                headers = {name: value for name, value in headers.items() if not _is_condition(name)}
            status, given, data = forward(self.command, self.path, headers, body)
            if what == "lose":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
            kept = {name: value for name, value in given.items() if name.lower() not in _OF_A_CONNECTION}
            return self._answer(status, kept, data)

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            length = str(len(body))
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
                elif self.command == "HEAD":
                    length = value
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    return Handler


_OF_A_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "date", "server")
