"""Azure Blob Storage on this machine: Azurite, Microsoft's emulator, where it is installed."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import os
import secrets
import shutil
import urllib.request

import pytest

from tests.object_server import ObjectServer, ServerProcess

ACCOUNT = "flights"


def find_program() -> str:
    """Skips where there is none."""
    named = os.environ.get("LANDMARK_BATCH_AZURITE")
    found = shutil.which(named or "azurite-blob")
    if named and not found:
        pytest.fail(f"LANDMARK_BATCH_AZURITE={named}: no such program")
    if not found:
        pytest.skip("no Azure emulator: npm install -g azurite, or name its azurite-blob in LANDMARK_BATCH_AZURITE")
    return found


class AzureServer(ObjectServer):
    scheme = "az"
    credential = "AZURE_STORAGE_ACCOUNT_NAME"

    def __init__(self) -> None:
        program = find_program()
        self.key = self.another_key()

        def words(port: int) -> list[str]:
            plain = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
            return [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *plain]

        self._process = ServerProcess(words, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"})
        self.address = self._process.address

    def settings(self, address: str, *, key: str = "") -> dict[str, str]:
        names = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": key or self.key}
        return {**names, "AZURE_STORAGE_ENDPOINT": f"{address}/{ACCOUNT}"}

    def another_key(self) -> str:
        return base64.b64encode(secrets.token_bytes(64)).decode()

    def bucket(self) -> str:
        name = f"b{secrets.token_hex(6)}"
        dated = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        signed = f"PUT{12 * chr(10)}" + "".join(f"{header}:{value}\n" for header, value in dated.items())
        signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(self.key), signed.encode(), hashlib.sha256)).decode()
        headers = {**dated, "Content-Length": "0", "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
        url = f"{self.address}/{ACCOUNT}/{name}?restype=container"
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
            return f"az://{name}"

    def close(self) -> None:
        self._process.close()
