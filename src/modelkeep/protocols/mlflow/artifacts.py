"""The artifact proxy: upload, download, list and delete, streamed to and from the blob store in flat memory.

Files are handed out as attachments of no type, so that nothing a client stored can run in a page.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import queue
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from sqlalchemy import Connection
from starlette.types import Message, Receive, Scope, Send

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import BlobStore
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.door import Doorkeeper
from modelkeep.protocols.mlflow import model_versions, shapes, traces_files, wire
from modelkeep.registry import artifacts, catalog, logged, runs, traces
from modelkeep.registry.artifacts import Entry, Owner

WORKERS = 8
PART = 1 << 20
"""Bytes read from the store at a time."""

HELD = 32
"""Pieces of an upload that wait for the store; the client waits beyond that."""

PREFIX = b"/mlflow-artifacts/artifacts"
KIND = b"application/octet-stream"
_RANGE = re.compile(rb"bytes=(\d{1,18})-(\d{0,18})\Z")


class Artifacts:
    """The artifact operations of one home.

    Args:
        keeper: Whether they may be done by whoever asks.
    """

    def __init__(self, keep: Keep, keeper: Doorkeeper) -> None:
        self._keep = keep
        self._keeper = keeper
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="modelkeep-artifact")

    async def proxy(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, bytes] | None:
        """Answer below ``mlflow-artifacts/artifacts``; a body to send, or None when it was sent."""
        method, path = scope["method"], below(scope, PREFIX)
        if not path:
            if method == "GET":
                return 200, await self._list_proxied(_query(scope).get("path", ""))
            raise Invalid("Invalid path: expected a file's path")
        if method == "PUT":
            await self._upload(path, receive)
            return 200, b"{}"
        if method == "DELETE":
            owner, inner = await self.look(lambda conn: self.locate(conn, path))
            await asyncio.wrap_future(self._keep.db.submit(lambda conn: artifacts.remove(conn, owner, inner)))
            return 200, b"{}"
        if method == "GET":
            await self.send(await self.look(lambda conn: self.located(conn, path)), path, scope, send)
            return None
        raise Invalid(f"{method} is not offered on artifacts")

    async def get(self, scope: Scope, send: Send) -> None:
        """Send a file of a run (``run_id``), logged model (``model_id``) or version (``name``, ``version``)."""
        said = _query(scope)
        path = said.get("path") or said.get("artifact_file_path", "")
        artifacts.segments(path)

        def look(conn: Connection) -> tuple[str, int]:
            owner, root = self._owner(conn, said)
            return artifacts.find(conn, self._keep.blobs, owner, f"{root}/{path}" if root else path)

        await self.send(await self.look(look), path, scope, send)

    async def of_trace(self, scope: Scope, send: Send) -> tuple[int, bytes] | None:
        """Spans of a trace (``request_id``) as ``traces.json``, or one of its attachments (``path``).

        A body to send, or None when it was sent.
        """
        said = _query(scope)
        path = said.get("path", "")
        artifacts.segments(path or traces_files.FILE)

        def look(conn: Connection) -> bytes | tuple[str, int]:
            row = traces.find(conn, said.get("request_id", ""))
            owner = Owner("trace", row.id)
            self._keeper.files(conn, "read", owner)
            held = None if path else traces_files.whole(conn, row)
            inner = f"attachments/{path}" if path else traces_files.FILE
            return artifacts.find(conn, self._keep.blobs, owner, inner) if held is None else held

        found = await self.look(look)
        if isinstance(found, bytes):
            return 200, found
        await self.send(found, path or traces_files.FILE, scope, send)
        return None

    async def listing(self, scope: Scope, model_id: str = "") -> bytes:
        """``artifacts/list`` of a run, or the folder of a logged model."""
        said = _query(scope)
        if model_id:
            said["model_id"] = model_id
        folder = said.get("path") or said.get("artifact_directory_path", "")
        if folder:
            artifacts.segments(folder)

        def look(conn: Connection) -> dict[str, Any]:
            uri = _uri(conn, said)
            owner, root = self._owner(conn, said)
            inner = "/".join(part for part in (root, folder) if part)
            found = artifacts.listing(conn, self._keep.blobs, owner, inner)
            skip = len(root) + 1 if root else 0
            return {"root_uri": uri, "files": [_file(entry, entry.path[skip:]) for entry in found]}

        return wire.encode(await self.look(look))

    def located(self, conn: Connection, path: str) -> tuple[str, int]:
        """Digest and size of the file that a path of the proxy names, if whoever asks may read it."""
        owner, inner = self.locate(conn, path, "read")
        return artifacts.find(conn, self._keep.blobs, owner, inner)

    async def _list_proxied(self, folder: str) -> bytes:
        def look(conn: Connection) -> dict[str, Any]:
            owner, inner = self.locate(conn, folder, "read")
            found = artifacts.listing(conn, self._keep.blobs, owner, inner)
            return {"files": [_file(entry, entry.path.rpartition("/")[2]) for entry in found]}

        return wire.encode(await self.look(look))

    def locate(self, conn: Connection, path: str, right: str = "write") -> tuple[Owner, str]:
        """Whose file a path of the proxy names, if whoever asks has the right to it; the path below its root."""
        return self._keeper.locate(conn, path, right)

    def root(self, conn: Connection, said: dict[str, str]) -> str:
        """The proxy's path of the files of a run or logged model. ``Refused`` when they are not kept here."""
        uri = _uri(conn, said)
        artifacts.of_uri(conn, uri)
        return uri.removeprefix(artifacts.SCHEME).strip("/")

    def _owner(self, conn: Connection, said: dict[str, str]) -> tuple[Owner, str]:
        """Whose files a run, logged model or version has, if whoever asks may read them; and where below."""
        owner, root = artifacts.of_uri(conn, _uri(conn, said))
        if said.get("name") and not said.get("model_id"):
            self._keeper.model(said["name"])
        else:
            self._keeper.files(conn, "read", owner)
        return owner, root

    async def look(self, work: Callable[[Connection], Any]) -> Any:
        """What ``work`` finds in the database, from a thread that knows who asks."""

        def look() -> Any:
            with self._keep.db.read() as conn:
                return work(conn)

        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, look)

    async def _upload(self, path: str, receive: Receive) -> None:
        def check(conn: Connection) -> tuple[Owner, str]:
            owner, inner = self.locate(conn, path)
            artifacts.writable(owner, inner)
            return owner, inner

        owner, inner = await self.look(check)
        digest, size = await self.keep(receive)
        await self.attach(owner, inner, digest, size)

    async def keep(self, receive: Receive) -> tuple[str, int]:
        """Store a request's body as it comes; its digest and size, once it is durable."""
        feed = _Feed()
        loop = asyncio.get_running_loop()
        storing = loop.run_in_executor(self._pool, self._keep.blobs.put, cast("BinaryIO", feed))
        try:
            await feed.fill(receive, storing)
        except BaseException:
            feed.fail()
            await asyncio.gather(storing, return_exceptions=True)
            raise
        return await storing, feed.size

    async def join(self, path: str, parts: Sequence[tuple[str, int]]) -> None:
        """Make stored parts (digests and sizes, in order) one file at a path of the proxy."""
        owner, inner = await self.look(lambda conn: self.locate(conn, path))
        blobs = self._keep.blobs
        joined = io.BufferedReader(_Chain(blobs.open(digest) for digest, _ in parts), PART)
        digest = await asyncio.get_running_loop().run_in_executor(self._pool, blobs.put, joined)
        await self.attach(owner, inner, digest, sum(size for _, size in parts))

    async def attach(self, owner: Owner, path: str, digest: str, size: int) -> None:
        """Put a stored file in its place."""
        await asyncio.wrap_future(self._keep.db.submit(artifacts.Put(owner, path, digest, size)))

    @property
    def blobs(self) -> BlobStore:
        """Where the bytes are."""
        return self._keep.blobs

    async def send(self, found: tuple[str, int], path: str, scope: Scope, send: Send) -> None:
        """Send a file, given its digest and size, or the part of it that ``Range`` asks for."""
        digest, size = found
        start, stop, status = 0, size, 200
        asked = next((value for name, value in scope["headers"] if name == b"range"), None)
        span = _RANGE.match(asked) if asked else None
        if span is not None and int(span[1]) < size:
            start, status = int(span[1]), 206
            stop = min(int(span[2]) + 1, size) if span[2] else size
        loop = asyncio.get_running_loop()
        stream = await loop.run_in_executor(self._pool, self._keep.blobs.open, digest, (start, max(stop, start)))
        headers = [
            (b"content-type", KIND),
            *as_attachment(path),
            (b"content-length", str(max(stop - start, 0)).encode()),
        ]
        if status == 206:
            headers.append((b"content-range", f"bytes {start}-{stop - 1}/{size}".encode()))
        with stream:
            first = await loop.run_in_executor(self._pool, stream.read, PART)  # damaged bytes are found before 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            while first:
                following = await loop.run_in_executor(self._pool, stream.read, PART)
                await send({"type": "http.response.body", "body": first, "more_body": bool(following)})
                first = following
            if stop <= start:
                await send({"type": "http.response.body", "body": b""})


class _Chain(io.RawIOBase):
    """Several streams, opened when their turn comes, as one."""

    def __init__(self, streams: Iterator[BinaryIO]) -> None:
        self._streams = streams
        self._now: BinaryIO | None = next(streams, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._now is not None:
            part = self._now.read(len(buffer))
            if part:
                buffer[: len(part)] = part
                return len(part)
            self._now.close()
            self._now = next(self._streams, None)
        return 0


class _Feed:
    """A request's body as the file the store reads, in another thread."""

    def __init__(self) -> None:
        self._parts: queue.Queue[bytes | None] = queue.Queue(HELD)
        self._rest = b""
        self._over = False
        self._failed = False
        self.size = 0

    async def fill(self, receive: Receive, storing: asyncio.Future[Any]) -> None:
        """Hand over what the client sends, until its end."""
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                raise Invalid("the client went away before the end of its file")
            part = message.get("body", b"")
            if part:
                self.size += len(part)
                await self._put(part, storing)
            if not message.get("more_body", False):
                await self._put(None, storing)
                return

    async def _put(self, part: bytes | None, storing: asyncio.Future[Any]) -> None:
        while not storing.done():
            try:
                self._parts.put_nowait(part)
            except queue.Full:
                await asyncio.sleep(0.002)
            else:
                return

    def fail(self) -> None:
        """Let the reader fail: nothing of the file is kept."""
        self._failed = True
        with self._parts.mutex:
            self._parts.queue.clear()
            self._parts.not_full.notify_all()
        self._parts.put(None)

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        while not self._rest and not self._over:
            part = self._parts.get()
            if self._failed:
                raise Invalid("the client went away before the end of its file")
            if part is None:
                self._over = True
            else:
                self._rest = part
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return taken


def _uri(conn: Connection, said: dict[str, str]) -> str:
    if said.get("model_id"):
        uri: str = logged.find(conn, said["model_id"]).artifact_uri
        return uri
    if said.get("name"):
        number = said.get("version", "")
        if not number.isdecimal() or len(number) > 9:
            raise Invalid(f"Model version must be an integer, got '{number[:100]}'")
        return model_versions.files_uri(catalog.find_version(conn, said["name"], int(number)))
    run_id = said.get("run_id") or said.get("run_uuid", "")
    if not run_id:
        raise wire.missing("run_id")
    return shapes.artifact_uri(runs.find(conn, run_id))


def _file(entry: Entry, path: str) -> dict[str, Any]:
    if entry.size is None:
        return {"path": path, "is_dir": True}
    return {"path": path, "is_dir": False, "file_size": entry.size}


def as_attachment(path: str) -> list[tuple[bytes, bytes]]:
    """Header lines of a file that no page must run."""
    name = quote(path.rpartition("/")[2], safe="")
    return [
        (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"sandbox; default-src 'none'"),
        (b"accept-ranges", b"bytes"),
    ]


def below(scope: Scope, prefix: bytes) -> str:
    """The path below a root of the proxy, decoded once from what was sent. Raises ``Invalid``."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return decoded(raw.partition(prefix)[2])


def decoded(rest: bytes) -> str:
    """A path as it was sent after a root of the proxy, decoded once. Raises ``Invalid``."""
    if rest in (b"", b"/"):
        return ""
    try:
        path = unquote_to_bytes(rest[1:]).decode()
    except UnicodeDecodeError:
        raise Invalid("Invalid path: expected UTF-8") from None
    artifacts.segments(path)
    return path


def _query(scope: Scope) -> dict[str, str]:
    try:
        return dict(parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict"))
    except ValueError:
        raise Invalid("Invalid query string") from None
