"""TLS between the processes of a cluster: credentials from files, temporary ones for a job of one user, and what an address exposes.

A Dask scheduler runs whatever code it is sent. Beyond the loopback interface, TLS with a certificate authority of the
cluster's own is what keeps others out: both ends of every connection show a certificate that it has signed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from distributed.security import Security

from landmark_batch.errors import ConfigError

SCHEMES = ("tcp", "tls")
SCHEDULER_PORT = 8786
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
_ROLES = ("client", "scheduler", "worker")
_LIFETIME = timedelta(days=30)
_CLOCKS_DIFFER = timedelta(days=1)


@dataclass(frozen=True)
class TlsCredentials:
    """ca, cert, key: each the path of a PEM file, or PEM text itself. All processes of a cluster may use the same ones."""

    ca: str
    cert: str
    key: str

    def security(self) -> Security:
        """For `security=` of Dask's Client, Scheduler and Nanny, in every role."""
        return Security(require_encryption=True, **self._fields())

    def _fields(self) -> dict[str, str]:
        fields = {"tls_ca_file": self.ca}
        for role in _ROLES:
            fields |= {f"tls_{role}_cert": self.cert, f"tls_{role}_key": self.key}
        return fields


def read_credentials(ca_file: Path | None, cert: Path | None, key: Path | None) -> TlsCredentials | None:
    """Credentials of three PEM files, proved by a handshake with themselves; None where none is named.

    Raises ConfigError: one of the three is not named, a file is missing, unreadable or no PEM, the key does not belong to the
    certificate, the authority has not signed it, it has expired or is not for both ends of a connection.
    """
    named = {"--tls-ca-file": ca_file, "--tls-cert": cert, "--tls-key": key}
    if not any(named.values()):
        return None
    missing = [name for name, path in named.items() if path is None]
    if ca_file is None or cert is None or key is None:
        raise ConfigError(f"{', '.join(missing)} missing: TLS takes an authority, a certificate and its key", remedy="name all three files")
    for path in (ca_file, cert, key):
        _readable(path)
    found = TlsCredentials(*(str(path.resolve()) for path in (ca_file, cert, key)))
    _prove(found.security(), ca_file, cert, key)
    return found


def _readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", remedy="check the path and the permissions of the file") from None


def _prove(security: Security, ca_file: Path, cert: Path, key: Path) -> None:
    """Shake hands with oneself, in memory: what the other ends will check is checked here, with names of files."""
    try:
        ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError as error:
        raise ConfigError(
            f"{ca_file}: no certificate in PEM form ({error.reason or error})", remedy="write the authority's .pem file"
        ) from None
    try:
        ends = [security.get_connection_args("client")["ssl_context"], security.get_listen_args("scheduler")["ssl_context"]]
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key} is not the key of {cert}", remedy="name the key that the certificate was made with") from None
        raise ConfigError(
            f"{cert} and {key}: not a certificate and its key in PEM form ({error.reason or error})", remedy="check which file is which"
        ) from None
    try:
        _handshake(*ends)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_EXPIRED, _NOT_YET):
            which = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
            raise ConfigError(f"{cert}, or its authority {ca_file}, {which}", remedy="make a new one, or mend this host's clock") from None
        raise ConfigError(
            f"{cert} does not hold before {ca_file}: {error.verify_message}",
            remedy="name the authority that signed it; the certificate must be for clients and servers",
        ) from None


def _handshake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    ends = [client, server]
    for _ in range(10):  # a handshake takes three turns
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not ends:
            return


def has_cryptography() -> bool:
    """Whether temporary credentials can be made here."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return False
    return True


def temporary_credentials() -> TlsCredentials:
    """A fresh self-signed pair, its own authority, as PEM text: for the processes of one job. Good for 30 days.

    Raises ConfigError without the package cryptography.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError(
            "temporary TLS credentials need the package cryptography",
            remedy="pip install 'landmark-batch[tls]' on the host that starts the job",
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "landmark-batch job")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    public = cert.public_bytes(serialization.Encoding.PEM).decode()
    return TlsCredentials(public, public, private)


def temporary_security(folder: Path) -> TlsCredentials:
    """`temporary_credentials` as files in `folder` that only this user can read: tls-cert.pem and tls-key.pem.

    Raises ConfigError where they cannot be written, or without the package cryptography.
    """
    made = temporary_credentials()
    cert, key = folder / "tls-cert.pem", folder / "tls-key.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, text in ((cert, made.cert), (key, made.key)):
            path.unlink(missing_ok=True)
            write_private(path, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write TLS credentials: {error.strerror or error}", remedy="check its permissions") from None
    return TlsCredentials(str(cert.resolve()), str(cert.resolve()), str(key.resolve()))


def write_private(path: Path, text: str) -> None:
    """A new file that only this user can read, from its first instant. Raises OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def split_address(address: str) -> tuple[str, str, int | None]:
    """'tls://head:8786' -> ('tls', 'head', 8786); '[::1]:9' -> ('', '::1', 9); 'head' -> ('', 'head', None). Raises ConfigError."""
    scheme, found, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":") if rest.count(":") == 1 or "]:" in rest else (rest, "", "")
    bad = (colon and not port.isdigit()) or (found and scheme not in SCHEMES) or not host.strip("[]")
    if bad or (port and int(port) > 65535):
        raise ConfigError(f"{address!r} is no scheduler's address", remedy="write it as tls://HOST:8786 or tcp://HOST:8786")
    return scheme, host.strip("[]"), int(port) if port else None


def scheduler_address(text: str, *, tls: bool) -> str:
    """'head' -> 'tls://head:8786' with credentials (tls), 'tcp://head:8786' without. Raises ConfigError, also where the two disagree."""
    scheme, host, port = split_address(text)
    if scheme == "tls" and not tls:
        raise ConfigError(f"{text} speaks TLS, and no credentials are given", remedy="give --tls-ca-file, --tls-cert and --tls-key")
    if scheme == "tcp" and tls:
        raise ConfigError(f"{text} speaks no TLS, and TLS credentials are given", remedy=f"write tls://{host}:{port or SCHEDULER_PORT}")
    return f"{scheme or ('tls' if tls else 'tcp')}://{f'[{host}]' if ':' in host else host}:{port or SCHEDULER_PORT}"


def is_loopback(address: str) -> bool:
    """Whether what listens at an address, or on a host, is reached from this machine alone. '' and 0.0.0.0 are every interface."""
    host = split_address(address)[1] if address else ""
    if host in ("", "0.0.0.0", "::", "*"):
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {item[4][0] for item in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(item).partition("%")[0]).is_loopback for item in found)


def exposure(host: str, tls: TlsCredentials | None) -> str | None:
    """The warning that belongs to listening on `host`; None where there is nothing to warn of."""
    if tls is not None or is_loopback(host):
        return None
    return (
        f"{host or '0.0.0.0'} is reached from other machines and there is no TLS: whoever reaches the port can run code as this user.\n"
        "  Give --tls-ca-file, --tls-cert and --tls-key (docs/clusters.md has the commands that make them), or --host 127.0.0.1"
    )
