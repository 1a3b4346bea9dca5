"""Presigned URLs: whoever holds one may read or write that one file for a while, without credentials.

Files are kept in chunks, so there is no object of a store that a URL could lead to: it leads back here, sealed,
and reads with ``Range`` like any download. The right to the file is proved when the URL is made.
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct
from sqlalchemy import Connection
from starlette.types import Receive, Scope, Send

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import asgi, wire
from modelkeep.protocols.mlflow.artifacts import Artifacts, below
from modelkeep.protocols.mlflow.sealed import Seals
from modelkeep.registry import artifacts

SIGNED = "mlflow-artifacts/signed/"
PRESIGNED = "mlflow-artifacts/presigned"
DOWNLOAD, UPLOAD = 300, 900
"""Seconds that URLs are good for unless the client says how long."""
LONGEST = 7 * 24 * 3600
_MAX_BODY = 64 * 1024


class CreateDownload(Struct, frozen=True):
    """createPresignedDownloadUrl."""

    run_id: str = ""
    path: str = ""
    expiration: int = DOWNLOAD


class CreateUpload(Struct, frozen=True):
    """createPresignedUploadUrl."""

    run_id: str = ""
    model_id: str = ""
    path: str = ""
    expiration: int = UPLOAD


class Presigned:
    """The operations on presigned URLs.

    Args:
        files: Where artifacts are kept.
        seals: What makes URLs that nobody else can make.
    """

    def __init__(self, files: Artifacts, seals: Seals) -> None:
        self._files = files
        self._seals = seals

    async def of_path(self, scope: Scope) -> bytes:
        """``mlflow-artifacts/presigned/PATH``: a URL to download it from, and its size."""
        path = below(scope, f"/{PRESIGNED}".encode())
        if scope["method"] != "GET" or not path:
            raise Invalid("Invalid path: expected GET of a file's path")
        size = await self._files.look(lambda conn: self._files.located(conn, path)[1])
        return wire.encode({"url": self._url(scope, "GET", path, DOWNLOAD), "headers": {}, "file_size": size})

    async def create(self, scope: Scope, receive: Receive) -> bytes:
        """``presigned-download-url`` of a run's file, ``presigned-upload-url`` of a run's or logged model's."""
        if scope["method"] != "POST":
            raise Invalid(f"{scope['method']} is not offered on {scope['path'][:200]}")
        up = scope["path"].endswith("presigned-upload-url")
        body = await asgi.read(receive, _MAX_BODY)
        asked = wire.decode(CreateUpload if up else CreateDownload, {}, b"", body)
        owned = {"run_id": asked.run_id, "model_id": asked.model_id if up else ""}
        if sum(map(bool, owned.values())) != 1:
            raise Invalid(
                "Exactly one of run_id and model_id must be provided." if up else "Missing value: run_id"
            )
        if not asked.path:
            raise wire.missing("path")
        artifacts.segments(asked.path)
        if not 1 <= asked.expiration <= LONGEST:
            raise Invalid(f"expiration must be between 1 and {LONGEST} seconds (got {asked.expiration}).")

        def look(conn: Connection) -> tuple[str, int]:
            path = f"{self._files.root(conn, owned)}/{asked.path}"
            if up:
                artifacts.writable(*self._files.locate(conn, path))
                return path, 0
            return path, self._files.located(conn, path)[1]

        path, size = await self._files.look(look)
        said = {"presigned_url": self._url(scope, "PUT" if up else "GET", path, asked.expiration), "headers": {}}
        return wire.encode(said if up else {**said, "file_size": size})

    async def answer(self, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Send or take the file of a URL that was made here."""
        said = self._seals.opened(token.partition("/")[0], "the URL", "link")
        if scope["method"] != said["method"]:
            raise Invalid(f"this URL is for {said['method']}, not for {scope['method']}")
        path: str = said["path"]
        if said["method"] == "GET":
            await self._files.send(
                await self._files.look(lambda conn: _found(conn, self._files, path)), path, scope, send
            )
            return
        owner, inner = await self._files.look(lambda conn: artifacts.locate(conn, path))
        digest, size = await self._files.keep(receive)
        await self._files.attach(owner, inner, digest, size)
        await asgi.send(send, 200, b"")

    def _url(self, scope: Scope, method: str, path: str, lifetime: int) -> str:
        token = self._seals.token("link", {"method": method, "path": path}, lifetime)
        name = quote(path.rpartition("/")[2], safe="")
        return f"{asgi.root(scope)}/api/2.0/{SIGNED}{token}/{name}"


def _found(conn: Connection, files: Artifacts, path: str) -> tuple[str, int]:
    owner, inner = artifacts.locate(conn, path)
    return artifacts.find(conn, files.blobs, owner, inner)
