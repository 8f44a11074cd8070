"""The library that speaks to object stores, and what its errors mean to a user. Nothing is imported before the first URL is used."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from landmark_batch.errors import StoreError

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
RETRY_SECONDS = 30.0  # in which a request that failed for no lasting reason is tried again
REQUEST_SECONDS = 120.0  # of one request, its body included
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist", "container does not exist")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationPermissionMismatch", "ExpiredToken", "code: 403")
_NO_KEYS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "MissingCredential", "missing credential")
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<\n]*)[^<]*</Message>)?")
_STATUS = re.compile(r"non-2xx status code: ((\d{3})[^:\n]*)")
_LATER = (408, 409, 412, 425, 429)  # of the 4xx, those that another attempt may change
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, for other servers than Amazon's AWS_ENDPOINT_URL too",
    "gs": "GOOGLE_SERVICE_ACCOUNT, the path of a service account's key (JSON)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN in place of the key",
}


def provider(url: str) -> str:
    """'s3', 'gs' or 'az' of a URL."""
    scheme = url.partition("://")[0]
    return "az" if scheme.startswith("abfs") else scheme


def installed() -> bool:
    """Whether obstore is there."""
    return importlib.util.find_spec("obstore") is not None


class ObjectStoreError(StoreError):
    """An object store refused a request or could not be reached.

    passing: it may go better the next time; every request was tried again for a while already.
    """

    def __init__(self, message: str, *, remedy: str | None = None, passing: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.passing = passing


def library(url: str) -> Any:
    """The module obstore. Raises ObjectStoreError where it is not installed."""
    try:
        import obstore
    except ImportError:
        raise ObjectStoreError(
            f"{url}: object stores need the package obstore", remedy="pip install 'landmark-batch[cloud]', on every worker host too"
        ) from None
    return obstore


@lru_cache(maxsize=16)
def _client(bucket: str, process: int) -> Any:
    library(bucket)
    from obstore.store import from_url

    waits = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2}
    retries: dict[str, Any] = {"max_retries": 12, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": waits}
    options: dict[str, Any] = {"allow_http": True, "connect_timeout": "10s", "timeout": f"{REQUEST_SECONDS:.0f}s"}
    return from_url(bucket, client_options=options, retry_config=retries)


def call(bucket: str, url: str, name: str, *args: Any, **options: Any) -> Any:
    """One function of obstore on a bucket. url: of what is asked for, for messages.

    Raises FileNotFoundError, FileExistsError where a condition does not hold, ObjectStoreError.
    """
    function = getattr(library(url), name)
    try:
        client = _client(bucket, os.getpid())
    except ObjectStoreError:
        raise
    except Exception as error:  # nothing was asked yet: it is what the environment says
        raise ObjectStoreError(f"{url}: {_brief(str(error))}", remedy=_credentials(bucket)) from error
    try:
        return function(client, *args, **options)
    except Exception as error:
        raise translated(error, url, bucket) from error


def translated(error: Exception, url: str, bucket: str) -> OSError | ObjectStoreError:
    """What an exception of the library is to this program."""
    if isinstance(error, ObjectStoreError):
        return error
    kind, text = type(error).__name__, str(error)
    if any(word in text for word in _NO_BUCKET):
        remedy = "make it, or check its name, and the account, region and endpoint"
        return ObjectStoreError(f"{url}: there is no bucket {bucket}", remedy=remedy)
    if kind in ("AlreadyExistsError", "PreconditionError", "NotModifiedError"):
        return FileExistsError(errno.EEXIST, "written by another meanwhile", url)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "not there", url)
    brief, status = _brief(text), _status(text)
    if any(word in text for word in _NO_KEYS):
        return ObjectStoreError(f"{url}: no credentials ({brief})", remedy=_credentials(bucket))
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403)
    if refused or any(word in text for word in _REFUSED):
        return ObjectStoreError(
            f"{url}: access is refused ({brief})", remedy=_credentials(bucket, " that may list, read, write and delete there")
        )
    if kind in ("InvalidPathError", "UnknownConfigurationKeyError", "NotSupportedError", "ValueError", "TypeError") or (
        status // 100 == 4 and status not in _LATER and "RequestTimeout" not in text
    ):
        return ObjectStoreError(f"{url}: {brief}", remedy="check the URL and the settings of its provider in the environment")
    remedy = "check the connection and the server's address, then run the same command again: finished frames stay"
    return ObjectStoreError(f"{url}: {brief}", remedy=remedy, passing=True)


def _credentials(bucket: str, rights: str = "") -> str:
    return f"give credentials{rights} in the environment, here and on every worker host: {_SETTINGS[provider(bucket)]}"


def _status(text: str) -> int:
    """Of HTTP; 0 where the library names none."""
    found = _STATUS.search(text)
    return int(found[2]) if found else 0


def _brief(text: str) -> str:
    """The server's own code and words, else its status, else the first line of the library's."""
    found = _CODE.search(text)
    if found:
        return ": ".join(part for part in found.groups() if part)
    status = _STATUS.search(text)
    if status and status[2].startswith("4") and not any(word in text for word in _NO_KEYS):
        return status[1].strip()
    return text.partition("\n")[0].strip().removesuffix(":")[:300]


def version_of(result: Mapping[str, Any]) -> dict[str, str]:
    """What names this state of an object in a later condition."""
    return {name: result[name] for name in ("e_tag", "version") if result.get(name)}
