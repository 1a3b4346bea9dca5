"""Object stores by URL (S3, Google Cloud Storage, Azure, memory): opened alike, with limits on trying again.

A store that is throttling (503 SlowDown, 429), fails (5xx), drops connections or does not answer is tried again,
each time after a longer pause, until ``MODELKEEP_STORE_TIMEOUT`` seconds have passed (120 unless set); then the
work fails with ``Unavailable``, having done nothing by halves: an object is under its name whole or not at all.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from modelkeep.core.errors import Invalid, NotFound, Unavailable

T = TypeVar("T")

SETTING = "MODELKEEP_STORE_TIMEOUT"
DEFAULT = 120.0
REQUEST = 30.0
"""Seconds after which one request counts as unanswered; less when the limit for all tries is less."""

_PIECE = 8 << 20
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RETRIES = 12
_TRIES = 4  # of a write that was not answered: the store repeats only reads by itself


def limit() -> float:
    """Seconds that a store may take to come back. Raises ``Invalid``."""
    said = os.environ.get(SETTING, "").strip()
    try:
        seconds = float(said) if said else DEFAULT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise Invalid(f"{said!r} is no number of seconds from 0 to 3600", path=SETTING)
    return seconds


def open_store(url: str, path: str = "") -> Any:
    """An ``obstore`` store. Credentials come from the environment, as the store's own tools take them.

    Args:
        url: ``s3://bucket/prefix`` and the like.
        path: Of the setting that named it, for errors.

    Raises:
        Invalid: The URL is of no known kind, or the settings make no sense.
    """
    seconds = limit()
    retries: Any = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=8), "base": 2},
    }
    options: Any = {"timeout": timedelta(seconds=min(REQUEST, seconds)), "connect_timeout": timedelta(seconds=5)}
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes") or url.startswith("http://")
    if plain:
        options["allow_http"] = True
    local = url.partition("://")[0] in ("memory", "file")
    try:
        return from_url(url) if local else from_url(url, client_options=options, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise Invalid(f"{url!r} is no object store: {error}", path=path) from error


class Ranges(io.RawIOBase):
    """An object as a file that seeks: what is read is asked for as ranges.

    Args:
        store: Opened.
        name: Of the object.

    Raises:
        NotFoundError, BaseError: As ``obstore``.
    """

    def __init__(self, store: Any, name: str) -> None:
        self._file = obstore.open_reader(store, name)
        self.size: int = self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = memoryview(self._file.read(min(len(view), self.size - self.tell())))
        view[: len(found)] = found
        return len(found)


def settings(url: str) -> dict[str, str] | None:
    """What another library needs to reach a store as we do: the same environment; None for a folder."""
    if "://" not in url:
        return None
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}


def fault(url: str, error: Exception) -> NotFound | Unavailable:
    """What went wrong with a store, for people."""
    said = words(error)
    if isinstance(error, NotFoundError | FileNotFoundError):
        return NotFound(f"not in {url}: {said}")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Unavailable(f"{url} refused: {said}", hint="check the credentials")
    if any(word in said for word in ("SlowDown", "503", "429", "TooManyRequests", "ServerBusy")):
        return Unavailable(
            f"{url} is throttling: it was asked again and again for {limit():g} seconds ({said})",
            hint=f"use fewer workers, wait, or raise {SETTING}",
        )
    if _unanswered(error):
        return Unavailable(
            f"{url} does not answer within {limit():g} seconds: {said}",
            hint=f"check the network and the endpoint, or raise {SETTING}",
        )
    return Unavailable(f"{url} cannot be reached: {said}", hint="try again")


def words(error: Exception) -> str:
    """What a store's library says, in one line."""
    return " ".join(_COLOURS.sub("", str(error)).split("\n\nDebug source")[0].split())[:400]


def put(store: Any, url: str, name: str, payload: bytes, *, replace: bool = False) -> bool:
    """Write an object, whole or not at all; whether it was written here.

    Without ``replace`` the write is conditional (If-None-Match), so of two writers of one name exactly one writes.

    Raises:
        Unavailable: The store fails, throttles or does not answer, beyond the limit.
    """
    mode: Any = "overwrite" if replace else "create"
    try:
        patiently(lambda: obstore.put(store, name, payload, mode=mode, use_multipart=False))
    except AlreadyExistsError:
        return False
    except (NotSupportedError, NotImplementedError):
        if replace:
            raise
        return put(store, url, name, payload, replace=True)  # a store without conditions: equal names, equal bytes
    except (BaseError, OSError) as error:
        raise fault(url, error) from error
    return True


def fetch(store: Any, url: str, name: str, folder: Path) -> Path:
    """An object's copy in a folder of this machine, made in flat memory; of one version, whoever writes meanwhile.

    Args:
        url: Of the object, for errors.

    Raises:
        NotFound: There is none.
        Unavailable: The store does not answer, or this machine's disk is full.
    """
    copy = folder / Path(name).name
    try:
        with copy.open("wb") as file:
            for piece in obstore.get(store, name).stream(min_chunk_size=_PIECE):
                file.write(piece)
    except (FileNotFoundError, NotFoundError):
        raise NotFound(f"{url} is gone") from None
    except BaseError as error:
        raise fault(url, error) from error
    except OSError as error:
        raise Unavailable(
            f"{url} cannot be fetched into {folder}: {error.strerror or error}",
            hint="free some space, or set TMPDIR to a folder with more",
        ) from error
    return copy


def patiently(work: Callable[[], T]) -> T:
    """Work that may be repeated, again when it was not answered, a few times within the limit."""
    end = time.monotonic() + limit()
    for tried in range(1, _TRIES + 1):
        try:
            return work()
        except (BaseError, OSError) as error:
            if tried == _TRIES or time.monotonic() >= end or not _unanswered(error):
                raise
    raise AssertionError("the last try returns or raises")


def _unanswered(error: Exception) -> bool:
    said = str(error).lower()
    return any(word in said for word in ("timed out", "timeout", "error sending request", "connection"))
