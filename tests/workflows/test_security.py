"""TLS: credentials that are refused with the file's name, and a scheduler that only holders of a signed certificate reach."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from distributed import Client

from landmark_batch.errors import ConfigError
from landmark_batch.workflows.cluster import join_cluster
from landmark_batch.workflows.host_scheduler import SchedulerOptions, scheduler_process
from landmark_batch.workflows.security import (
    TlsCredentials,
    exposure,
    is_loopback,
    read_credentials,
    scheduler_address,
    split_address,
    temporary_credentials,
    temporary_security,
)

pytest.importorskip("cryptography")
from tests.workflows.certificates import Authority


def test_no_option_is_no_tls() -> None:
    assert read_credentials(None, None, None) is None


def test_a_signed_certificate_is_taken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("head")
    assert read_credentials(authority.ca, cert, key) == TlsCredentials(str(authority.ca), str(cert), str(key))


def _missing_option(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    return Authority(folder).ca, None, None


def _missing_file(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    authority = Authority(folder)
    return authority.ca, authority.issue("head")[0], folder / "none.pem"


def _folder_in_place_of_a_file(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    return folder, *Authority(folder).issue("head")


def _other_key(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    authority = Authority(folder)
    return authority.ca, authority.issue("head")[0], authority.issue("other")[1]


def _no_pem(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    (folder / "text").write_text("hello")
    authority = Authority(folder)
    return authority.ca, folder / "text", authority.issue("head")[1]


def _no_authority(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    (folder / "text").write_text("hello")
    return folder / "text", *Authority(folder).issue("head")


def _expired(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    authority = Authority(folder)
    return authority.ca, *authority.issue("old", days=-1)


def _other_authority(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    return Authority(folder, "stranger").ca, *Authority(folder).issue("head")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing_option, "--tls-cert, --tls-key missing"),
        (_missing_file, "none.pem: No such file"),
        (_folder_in_place_of_a_file, "Is a directory"),
        (_other_key, "other-key.pem is not the key of .*head-cert.pem"),
        (_no_pem, "text and .*head-key.pem: not a certificate"),
        (_no_authority, "text: no certificate in PEM form"),
        (_expired, "old-cert.pem.* has expired"),
        (_other_authority, "head-cert.pem does not hold before .*stranger.pem"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_bad_credentials_are_named(make: object, message: str, tmp_path: Path) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message) as caught:
        read_credentials(*make(tmp_path))
    assert caught.value.remedy


def test_temporary_credentials_are_this_users_alone(tmp_path: Path) -> None:
    made = temporary_security(tmp_path / "private")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    for path in (made.cert, made.key):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert read_credentials(Path(made.ca), Path(made.cert), Path(made.key)) == made
    assert temporary_security(tmp_path / "private").cert == made.cert  # written anew in its place


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("tcp://127.8.0.1:8786", True),
        ("tls://[::1]:8786", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("", False),
        ("[::]:8786", False),
        ("192.0.2.7:8786", False),
        ("no-such-host.invalid", False),
    ],
)
def test_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
    warning = exposure(address, None)
    assert (warning is None) is loopback
    assert warning is None or "run code" in warning
    assert exposure(address, TlsCredentials("a", "b", "c")) is None


@pytest.mark.parametrize("address", ["tcp://:8786", "head:port", "http://head:80", "head:99999", ""])
def test_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="no scheduler's address"):
        split_address(address)


def test_the_scheme_follows_the_credentials() -> None:
    assert scheduler_address("head", tls=False) == "tcp://head:8786"
    assert scheduler_address("head:1", tls=True) == "tls://head:1"
    assert scheduler_address("[::1]:1", tls=True) == "tls://[::1]:1"
    with pytest.raises(ConfigError, match="no credentials are given"):
        scheduler_address("tls://head", tls=False)
    with pytest.raises(ConfigError, match="speaks no TLS"):
        scheduler_address("tcp://head", tls=True)


def test_a_client_is_told_what_its_address_needs() -> None:
    """Before anything is connected to: nothing listens at any of these."""
    with pytest.raises(ConfigError, match=r"tls://127\.0\.0\.1:1 speaks TLS, and no credentials are given"):
        join_cluster("tls://127.0.0.1:1")
    with pytest.raises(ConfigError, match="speaks no TLS"):
        join_cluster("tcp://127.0.0.1:1", security=temporary_credentials().security())
    with pytest.raises(ConfigError, match="'http://head:1' is no scheduler's address"):
        join_cluster("http://head:1")


def test_only_holders_of_a_signed_certificate_reach_a_scheduler() -> None:
    """Real processes: a TLS client works; a plain connection and a stranger's certificate do not."""
    tls, stranger = temporary_credentials(), temporary_credentials()
    with scheduler_process(SchedulerOptions(port=0, dashboard_port=None, tls=tls)) as up:
        assert up.address.startswith("tls://127.0.0.1:")
        with Client(up.address, security=tls.security(), set_as_default=False) as client:
            assert client.submit(sum, [1, 2], resources={"driver": 1}).result(timeout=60) == 3
            assert [worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()] == ["driver"]
        joined = join_cluster(up.address, security=tls.security())
        assert joined.dashboard is None
        joined.close()
        with pytest.raises(OSError):
            Client(up.address.replace("tls://", "tcp://"), timeout=2, set_as_default=False)
        with pytest.raises(OSError):
            Client(up.address, security=stranger.security(), timeout=2, set_as_default=False)
