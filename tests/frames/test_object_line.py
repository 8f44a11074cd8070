"""Frame stores in an object store behind a bad line or a server that does not do what it is told."""

from __future__ import annotations

import secrets
import threading

import pytest

from landmark_batch.errors import StoreError
from landmark_batch.frames.layout import layout_of
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from tests.object_server import ObjectServer
from tests.ports import free_port

from .store_kit import assert_is, make_flight, make_settings, make_spec, render
from .test_object_store import place

FLIGHT, SETTINGS = make_flight(4), make_settings()


def test_a_lost_answer_is_no_lost_write_and_no_double_one(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth PUT is done, and its connection broken off before the answer."""
    puts, lost = [0], [0]

    def fault(method: str, path: str, headers: dict[str, str]) -> str | None:
        if (method == "PUT" and "if-match" in headers) or "if-none-match" in headers:
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


def test_a_server_that_ignores_conditions_is_refused(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server.relay(monkeypatch, lambda method, path, headers: "plain") as bucket:
        with pytest.raises(StoreError, match="ignores conditions of writes"):
            FrameStore.create(f"{bucket}/city.zarr", make_spec(4), FLIGHT, SETTINGS)
        assert place(f"{bucket}/city.zarr").tree() == []


def test_refusals_name_the_url_and_what_to_do(object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.object_client.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("landmark_batch.object_path._DELAY", 0.001)
    nowhere = f"s3://none-{secrets.token_hex(4)}/city.zarr"
    with pytest.raises(StoreError, match=rf"{nowhere}.*there is no bucket"):
        FrameStore.open(nowhere)
    with pytest.raises(StoreError, match="no such store"):
        FrameStore.open(f"{bucket}/city.zarr")
    place(f"{bucket}/other/file").write_text("mine")
    with pytest.raises(StoreError, match="foreign objects"):
        FrameStore.create(f"{bucket}/other", make_spec(4), FLIGHT, SETTINGS)
    with pytest.raises(StoreError, match="is an object"):
        FrameStore.create(f"{bucket}/other/file", make_spec(4), FLIGHT, SETTINGS)
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    with object_server.relay(monkeypatch, lambda method, path, headers: (403, b"" if method == "HEAD" else denied)) as closed:
        with pytest.raises(StoreError, match=f"{closed}/city.zarr.*access is refused") as refused:
            FrameStore.open(f"{closed}/city.zarr")
        assert "AWS_ACCESS_KEY_ID" in str(refused.value) and refused.value.exit_code == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match="check the connection"):
        FrameStore.open("s3://unreachable/city.zarr")


def test_a_server_that_is_busy_for_a_moment_costs_nothing(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = threading.Lock()
    asked: dict[str, int] = {}

    def fault(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes] | None:
        with turn:
            asked[f"{method} {path}"] = asked.get(f"{method} {path}", 0) + 1
            busy = method == "PUT" and "/rgb/c." in path and asked[f"{method} {path}"] == 1
        return (503, b"<Error><Code>SlowDown</Code></Error>") if busy else None

    with object_server.relay(monkeypatch, fault) as bucket:
        render(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert_is(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]
