"""The library that speaks to object stores, and what its errors mean to a user. Nothing is imported before the first URL is used."""

from __future__ import annotations

import errno
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
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden", "401 Unauthorized", "ExpiredToken")
_NO_KEYS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "MissingCredential", "missing credential")
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_CREDENTIALS = (
    "give credentials in the environment, here and on every worker host (s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, for "
    "other servers AWS_ENDPOINT_URL; gs: GOOGLE_SERVICE_ACCOUNT; az: AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY)"
)


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
        return function(_client(bucket, os.getpid()), *args, **options)
    except Exception as error:
        raise translated(error, url, bucket) from error


def translated(error: Exception, url: str, bucket: str) -> OSError | ObjectStoreError:
    """What an exception of the library is to this program."""
    if isinstance(error, ObjectStoreError):
        return error
    kind, text = type(error).__name__, str(error)
    if any(word in text for word in _NO_BUCKET):
        return ObjectStoreError(f"{url}: there is no bucket {bucket}", remedy="make it, or check its name, region and endpoint")
    if kind in ("AlreadyExistsError", "PreconditionError", "NotModifiedError"):
        return FileExistsError(errno.EEXIST, "written by another meanwhile", url)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "not there", url)
    brief = _brief(text)
    if any(word in text for word in _NO_KEYS):
        return ObjectStoreError(f"{url}: no credentials ({brief})", remedy=_CREDENTIALS)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or any(word in text for word in _REFUSED):
        return ObjectStoreError(f"{url}: access is refused ({brief})", remedy=_CREDENTIALS)
    if kind in ("InvalidPathError", "UnknownConfigurationKeyError", "NotSupportedError", "ValueError", "TypeError"):
        return ObjectStoreError(f"{url}: {brief}", remedy="check the URL and the settings of its provider in the environment")
    remedy = "check the connection and the server's address, then run the same command again: finished frames stay"
    return ObjectStoreError(f"{url}: {brief}", remedy=remedy, passing=True)


def _brief(text: str) -> str:
    """The server's own code and words, else the first line of the library's."""
    found = _CODE.search(text)
    if found:
        return ": ".join(part for part in found.groups() if part)
    return text.partition("\n")[0].strip().removesuffix(":")[:300]


def version_of(result: Mapping[str, Any]) -> dict[str, str]:
    """What names this state of an object in a later condition."""
    return {name: result[name] for name in ("e_tag", "version") if result.get(name)}
