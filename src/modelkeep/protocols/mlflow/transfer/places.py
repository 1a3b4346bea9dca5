"""Where an MLflow store keeps files: folders, object stores, and the artifact proxy of a server.

A place is read only when it ends as MLflow ends it, in ``<run id>/artifacts`` or ``models/<model id>/artifacts``:
whoever may make an experiment there can name any folder as its location, and must not have it copied here.
Symbolic links that lead out of a place are not followed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from modelkeep.core.errors import Invalid, NotFound, Unavailable
from modelkeep.protocols.mlflow.transfer.records import Owned, Run

PROXIED = "mlflow-artifacts:"
BUFFER = 4 << 20


class Proxy(Protocol):
    """What reads ``mlflow-artifacts:/`` URIs: a tracking server."""

    def files(self, path: str) -> list[tuple[str, int | None]]:
        """Path below ``path`` and size of each file."""
        ...

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """One file."""
        ...


class Places:
    """Reads files by their owner's artifact URI.

    Args:
        root: What ``mlflow-artifacts:/`` and relative locations are below: a folder or an object store's URL.
        proxy: A server that reads ``mlflow-artifacts:/``, instead of ``root``.
    """

    def __init__(self, root: str = "", proxy: Proxy | None = None) -> None:
        self._root, self._proxy = root.rstrip("/"), proxy
        self._stores: dict[str, Any] = {}

    def files(self, owner: Owned) -> list[tuple[str, int | None]]:
        """Path and size of each file, in order. Raises ``Invalid``, ``Unavailable``."""
        uri = place(owner)
        if not uri:
            return []
        if uri.startswith(PROXIED) and self._proxy is not None:
            return sorted(self._proxy.files(_below_proxy(uri)))
        where = self._where(uri)
        if isinstance(where, Path):
            return sorted(below(where))
        store, prefix = self._bucket(where)
        with _reached(where):
            listed = [entry for page in obstore.list(store, prefix=prefix) for entry in page]
        skip = len(prefix) + 1 if prefix else 0
        return sorted((str(entry["path"])[skip:], int(entry["size"])) for entry in listed)

    def open(self, owner: Owned, path: str) -> AbstractContextManager[BinaryIO]:
        """One file's bytes. Raises ``NotFound``, ``Unavailable``."""
        uri = place(owner)
        if uri.startswith(PROXIED) and self._proxy is not None:
            return self._proxy.open(f"{_below_proxy(uri)}/{path}")
        where = self._where(uri)
        if isinstance(where, Path):
            return opened(where, path)
        store, prefix = self._bucket(where)
        return _stream(store, f"{prefix}/{path}" if prefix else path, where)

    def _where(self, uri: str) -> Path | str:
        """A local folder, or an object store's URL."""
        if uri.startswith(PROXIED):
            if not self._root:
                raise Invalid(
                    f"the files are at {uri}, and only the server knows where that is",
                    path="--artifacts",
                    hint="name the folder or URL the server was given as --artifacts-destination,"
                    " or import from the server's address, or leave files behind with --no-artifacts",
                )
            uri = f"{self._root}/{_below_proxy(uri)}"
        scheme = urlsplit(uri).scheme
        if scheme in ("", "file") or re.match(r"[A-Za-z]:[\\/]", uri):
            path = Path(unquote(urlsplit(uri).path) if scheme == "file" else uri)
            return path if path.is_absolute() else Path(self._root or ".") / path
        return uri

    def _bucket(self, url: str) -> tuple[Any, str]:
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        if base not in self._stores:
            try:
                self._stores[base] = from_url(base)
            except (BaseError, ValueError) as error:
                raise Invalid(f"{url!r} cannot be read: {error}", path="artifact_uri") from None
        return self._stores[base], parts.path.strip("/")


def place(owner: Owned) -> str:
    """The artifact URI of a run or logged model, if it is one that MLflow makes; empty when it has none.

    Raises:
        Invalid: It is another place.
    """
    uri = owner.artifact_uri.rstrip("/")
    ends = f"{owner.run_id}/artifacts" if isinstance(owner, Run) else f"models/{owner.model_id}/artifacts"
    if uri and (not uri.endswith(f"/{ends}") or ".." in unquote(uri).replace("\\", "/").split("/")):
        raise Invalid(
            f"{uri[:200]!r} is not below an experiment's artifacts: expected it to end in {ends!r}",
            path="artifact_uri",
            hint="nothing is read from there; copy such files yourself",
        )
    return uri


def _below_proxy(uri: str) -> str:
    """``mlflow-artifacts:/1/x`` and ``mlflow-artifacts://host:5000/1/x`` as ``1/x``."""
    return urlsplit(uri).path.removeprefix("/api/2.0/mlflow-artifacts/artifacts").strip("/")


def below(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Path and size of each file of a local folder."""
    if not folder.is_dir():
        return
    root = folder.resolve()
    for above, _, names in os.walk(root):
        for name in names:
            path = Path(above) / name
            if path.resolve().is_relative_to(root) and path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


@contextlib.contextmanager
def opened(folder: Path, path: str) -> Iterator[BinaryIO]:
    """A file of a local folder. Raises ``NotFound``, ``Unavailable``."""
    try:
        with (folder / path).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise NotFound(f"there is no file {folder / path}") from None
    except OSError as error:
        raise Unavailable(f"{folder / path} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _stream(store: Any, path: str, where: str) -> Iterator[BinaryIO]:
    with _reached(where):
        yield cast("BinaryIO", obstore.open_reader(store, path, buffer_size=BUFFER))


@contextlib.contextmanager
def _reached(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"not in {where}: {error}") from None
    except (BaseError, PermissionError) as error:
        raise Unavailable(f"{where} cannot be read: {error}", hint="check its credentials") from None
