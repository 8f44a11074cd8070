"""--tls-ca-file, --tls-cert, --tls-key: of every command that talks to a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landmark_batch.commands.common import path_type

if TYPE_CHECKING:
    from landmark_batch.workflows.security import TlsCredentials

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = ("tls_ca_file", "tls_cert", "tls_key")


def tls_options(function: F) -> F:
    """The three options; `read_tls` takes their values."""
    for option in reversed(
        (
            click.option("--tls-ca-file", type=path_type(), help="Authority that signed the cluster's certificates (PEM)."),
            click.option("--tls-cert", type=path_type(), help="Certificate of this process (PEM)."),
            click.option("--tls-key", type=path_type(), help="Its key (PEM)."),
        )
    ):
        function = option(function)
    return function


def tls_words(flags: Mapping[str, Any]) -> str:
    """The options as a shell takes them, each after a blank; '' where none is given."""
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(flags[name]))}" for name in _NAMES if flags[name])


def read_tls(flags: Mapping[str, Any]) -> TlsCredentials | None:
    """Credentials of the options' values, None where none is given. Raises ConfigError naming the file."""
    if not any(flags[name] for name in _NAMES):
        return None
    from landmark_batch.workflows.security import read_credentials

    return read_credentials(flags["tls_ca_file"], flags["tls_cert"], flags["tls_key"])
