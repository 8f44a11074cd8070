"""Frame stores in an object store behind a bad line or a server that does not do what it is told."""

from __future__ import annotations

import secrets
import threading
from urllib.parse import unquote

import pytest

from landmark_batch.errors import StoreError
from landmark_batch.frames.layout import layout_of
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from landmark_batch.object_client import ObjectStoreError
from tests.object_server import ObjectServer, every_service, on
from tests.ports import free_port

from .store_kit import assert_is, make_flight, make_settings, make_spec, pick, render
from .test_object_store import place

FLIGHT, SETTINGS = make_flight(4), make_settings()


@every_service
def test_a_lost_answer_is_no_lost_write_and_no_double_one(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth PUT is done, and its connection broken off before the answer."""
    puts, lost = [0], [0]

    def fault(method: str, path: str, headers: dict[str, str]) -> str | None:
        if method == "PUT" and {"if-match", "if-none-match", "x-goog-if-generation-match"} & set(headers):
            puts[0] += 1
            if puts[0] % 8 == 1:
                lost[0] += 1
                return "lose"
        return None

    monkeypatch.setattr("landmark_batch.object_path._DELAY", 0.001)
    with object_server.relay(monkeypatch, fault) as bucket:
        url = f"{bucket}/city.zarr"
        assert render(url, FLIGHT, SETTINGS) == [0, 1, 2, 3]  # type: ignore[arg-type]
        assert lost[0] > 4
        logs = [line for log in layout_of(url).ledger.glob("*.log") for line in log.read_text().splitlines()]
        assert len(logs) == 2  # of two commits
        assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert verify_store(url).ok


@on("s3", "gs")  # Azure's signatures cover conditions: none gets lost
def test_a_server_that_ignores_conditions_is_refused(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server.relay(monkeypatch, lambda method, path, headers: "plain") as bucket:
        with pytest.raises(StoreError, match="ignores conditions of writes"):
            FrameStore.create(f"{bucket}/city.zarr", make_spec(4), FLIGHT, SETTINGS)
        assert place(f"{bucket}/city.zarr").tree() == []


@every_service
def test_refusals_name_the_url_and_what_to_do(object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.object_client.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("landmark_batch.object_path._DELAY", 0.001)
    nowhere = f"{object_server.scheme}://none-{secrets.token_hex(4)}/city.zarr"
    with pytest.raises(StoreError, match=rf"{nowhere}.*there is no bucket"):
        FrameStore.open(nowhere)
    with pytest.raises(StoreError, match=r"there is no bucket"):
        FrameStore.create(nowhere, make_spec(4), FLIGHT, SETTINGS)
    with pytest.raises(StoreError, match="no such store"):
        FrameStore.open(f"{bucket}/city.zarr")
    place(f"{bucket}/other/file").write_text("mine")
    with pytest.raises(StoreError, match="foreign objects"):
        FrameStore.create(f"{bucket}/other", make_spec(4), FLIGHT, SETTINGS)
    with pytest.raises(StoreError, match="is an object"):
        FrameStore.create(f"{bucket}/other/file", make_spec(4), FLIGHT, SETTINGS)
    with object_server.relay(monkeypatch, lambda method, path, headers: (403, b"" if method == "HEAD" else _DENIED)) as closed:
        _is_refused(f"{closed}/city.zarr", object_server.credential)
    for name, value in object_server.settings(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="check the connection"):
        FrameStore.open(f"{object_server.scheme}://unreachable/city.zarr")


_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def _is_refused(url: str, credential: str) -> None:
    with pytest.raises(StoreError, match=f"{url}.*access is refused") as refused:
        FrameStore.open(url)
    assert credential in str(refused.value) and refused.value.exit_code == 2
    with pytest.raises(StoreError, match="access is refused") as refused:
        FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    assert credential in str(refused.value)


@on("gs", "az")  # moto looks at no key
def test_another_key_is_refused(object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key as it should be, but not the account's."""
    for name, value in object_server.settings(object_server.address, key=object_server.another_key()).items():
        monkeypatch.setenv(name, value)
    _is_refused(f"{object_server.bucket()}/city.zarr", object_server.credential)


@on("s3", "az")
def test_who_may_only_read_looks_on(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[int] = []

    def fault(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes] | None:
        return (403, _DENIED) if closed and method not in ("GET", "HEAD") else None

    with object_server.relay(monkeypatch, fault) as bucket:
        url = f"{bucket}/city.zarr"
        render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
        closed.append(1)
        assert verify_store(url).ok and not caplog.records
        with pytest.raises(StoreError, match="access is refused"):
            render(url, FLIGHT, make_settings(128), update=True)  # type: ignore[arg-type]
        assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("gs://b/city.zarr", {"GOOGLE_SERVICE_ACCOUNT": "/nowhere/key.json"}, "Unable to open service account file from /nowhere/key.json"),
        ("gs://b/city.zarr", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}, "Unable to decode service account file"),
        ("az://b/city.zarr", {}, "Account must be specified"),
        ("az://b/city.zarr", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "no key!"}, "Invalid Access Key"),
    ],
)
def test_settings_that_cannot_be_right_are_no_matter_of_the_connection(
    url: str, environment: dict[str, str], said: str, no_object_store: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ObjectStoreError, match=f"{url}.*{said}") as refused:
        FrameStore.open(url)
    assert {"gs": "GOOGLE_SERVICE_ACCOUNT", "az": "AZURE_STORAGE_ACCOUNT_NAME"}[url[:2]] in str(refused.value.remedy)
    assert refused.value.exit_code == 2 and not refused.value.passing


@on("az")
def test_no_frame_is_moved_by_a_copy_that_azure_may_make_later(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure may answer that it has accepted a copy, and make it later: the source must be there until then."""

    def fault(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes] | None:
        return (202, b"") if "x-ms-copy-source" in headers else None

    with object_server.relay(monkeypatch, fault) as bucket:
        url, other = f"{bucket}/city.zarr", pick(FLIGHT, [3, 0, 1])
        render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert render(url, other, SETTINGS, update=True) == []  # type: ignore[arg-type]
        assert_is(url, other, SETTINGS)  # type: ignore[arg-type]
        assert verify_store(url).ok


@every_service
def test_a_server_that_is_busy_for_a_moment_costs_nothing(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = threading.Lock()
    asked: dict[str, int] = {}

    def fault(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes] | None:
        with turn:
            asked[f"{method} {path}"] = asked.get(f"{method} {path}", 0) + 1
            busy = method == "PUT" and "/rgb/c." in unquote(path) and asked[f"{method} {path}"] == 1
        return (429 if object_server.scheme == "gs" else 503, b"<Error><Code>SlowDown</Code></Error>") if busy else None

    with object_server.relay(monkeypatch, fault) as bucket:
        render(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert_is(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]
