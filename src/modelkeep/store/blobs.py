"""Immutable bytes by digest: each distinct chunk is kept once, and nothing unverified is handed out."""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from blake3 import blake3

from modelkeep.core.errors import Damaged, Invalid, NotFound, Problem, Refused
from modelkeep.core.ports import BlobStore, Progress, Silent
from modelkeep.store.bytestores import Batch, ByteStore
from modelkeep.store.chunks import LIST, SMALL, Buffer, ChunkList, cut, digest_of, pack, read_fully, unpack
from modelkeep.store.places import open_bytes

_DIGEST = re.compile("[0-9a-f]{64}")
_SEAL_EVERY = 32 * 1024 * 1024


def open_blobs(url: str) -> Blobs:
    """A blob store in a folder (a path or ``file://``) or an object store (``s3://``, ``gs://``, ``az://``).

    Object stores take their credentials from the environment, as their own tools do.

    Raises:
        Invalid: The URL is of no known kind.
        Unavailable: The folder cannot be made.
    """
    return Blobs(open_bytes(url))


@lru_cache(maxsize=8)
def _opened(url: str) -> Blobs:
    """Where it is sent to. A folder is not made: whoever sent it has it, so another machine would have its own."""
    if "://" not in url and not Path(url).is_dir():
        raise Refused(
            f"blobs: there is no folder {url} on {socket.gethostname()}, where work in parts is done",
            hint="use an object store (blobs: s3://...) or a folder that all the engine's machines share",
        )
    return open_blobs(url)


class Blobs:
    """The ``BlobStore`` port over a dumb byte store.

    Under ``blobs/`` is one object per blob: its bytes when small, else the list of its chunks; under ``chunks/``
    the chunks, shared by all blobs. A blob's object is written only when its chunks are durable.
    """

    def __init__(self, store: ByteStore) -> None:
        self._store = store

    def put(self, stream: BinaryIO | bytes) -> str:
        """Keep the bytes and return their digest, once they are durable. Raises ``Unavailable``."""
        with _Incoming(self._store) as incoming:
            return incoming.add(stream)

    def put_many(
        self, streams: Mapping[str, BinaryIO | bytes | Path], *, gathered: bool = False
    ) -> dict[str, tuple[str, int]]:
        """Keep several, made durable together: digest and size by the names given.

        Args:
            gathered: More will come soon and often, as to a server: a journal may then flush them. ``close`` it.

        Raises:
            Unavailable: The disk is full or away.
        """
        found = {}
        with _Incoming(self._store, gathered=gathered) as incoming:
            for name, given in streams.items():
                if isinstance(given, Path):
                    with given.open("rb") as file:
                        found[name] = (incoming.add(file), incoming.size)
                else:
                    found[name] = (incoming.add(given), incoming.size)
        return found

    def open(self, digest: str, span: tuple[int, int] | None = None) -> BinaryIO:
        """Read the bytes, or those in ``[start, stop)``. The result can seek; each chunk read is verified.

        Raises:
            NotFound: The blob is not kept here.
            Damaged: On reading, what is stored is not what was put.
        """
        stored = self._head(digest)
        if stored[:1] != LIST:
            data = unpack(stored, digest)
            return io.BytesIO(data if span is None else data[_slice(span)])
        chunks = ChunkList.from_bytes(stored, digest)
        start, stop, _ = _slice(span).indices(chunks.size)
        reader = _Reader(self._chunk, chunks, start, max(stop, start))
        return io.BufferedReader(reader, buffer_size=128 * 1024)

    def read(self, digest: str) -> bytes:
        """All bytes of a blob that fits in memory. Raises ``NotFound``, ``Damaged``."""
        stored = self._head(digest)
        if stored[:1] != LIST:
            return unpack(stored, digest)
        data = b"".join(self._chunk(name) for name in ChunkList.from_bytes(stored, digest).digests)
        if digest_of(data) != digest:
            raise Damaged(f"the chunks of {digest} do not add up to it", hint="put the same bytes again")
        return data

    def size(self, digest: str) -> int:
        """Length in bytes. Raises ``NotFound``, ``Damaged``."""
        stored = self._head(digest)
        return ChunkList.from_bytes(stored, digest).size if stored[:1] == LIST else len(unpack(stored, digest))

    def exists(self, digest: str) -> bool:
        """Whether the bytes are kept here."""
        return _is_digest(digest) and self._store.exists(_name("blobs", digest))

    def delete(self, digest: str) -> None:
        """Forget the blob; its chunks stay, as others may share them. No error when it is not there."""
        if _is_digest(digest):
            self._store.delete(_name("blobs", digest))

    def digests(self) -> Iterator[str]:
        """Every blob's digest, in order."""
        for name in self._store.names("blobs"):
            yield "".join(name.split("/")[-2:])

    def verify(self, digest: str) -> None:
        """Read all of a blob in flat memory. Raises ``NotFound``, ``Damaged``."""
        stored = self._head(digest)
        if stored[:1] != LIST:
            unpack(stored, digest)
            return
        whole = blake3()
        for name in ChunkList.from_bytes(stored, digest).digests:
            whole.update(self._chunk(name))
        if whole.hexdigest() != digest:
            raise Damaged(f"the chunks of {digest} do not add up to it", hint="put the same bytes again")

    def close(self) -> None:
        """Settle what is in a journal. It may be used again."""
        self._store.close()

    def __reduce__(self) -> Any:
        # Workers on other machines open the place anew, each once; its credentials come from their environment.
        return _opened, (self._store.url,)

    @property
    def below(self) -> ByteStore:
        """Where the objects are."""
        return self._store

    def _head(self, digest: str) -> bytes:
        if not _is_digest(digest):
            raise NotFound(f"{digest!r} is not a digest; expected 64 hexadecimal characters")
        try:
            return self._store.get(_name("blobs", digest))
        except NotFound:
            raise NotFound(f"there is no blob {digest}") from None

    def _chunk(self, digest: str) -> bytes:
        try:
            return unpack(self._store.get(_name("chunks", digest)), digest)
        except NotFound:
            raise Damaged(f"chunk {digest} is missing", hint="put the same bytes again") from None


class _Incoming:
    """Blobs on their way in: all chunks are made durable before any blob that needs them shows.

    While one batch of chunks is flushed to disk, the next is cut and hashed.
    """

    def __init__(self, store: ByteStore, *, gathered: bool = False) -> None:
        self._store = store
        self._chunks: Batch = store.batch()
        self._blobs: Batch = store.batch(gathered=gathered)
        self._unsealed = 0
        self._seen: set[str] = set()
        self._sealing: Future[None] | None = None
        self._sealer: ThreadPoolExecutor | None = None
        self.size = 0  # of the blob added last

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._sealing is not None:
                self._sealing.result()
            if kind is None:
                self._chunks.seal()
                self._blobs.seal()
        finally:
            self._chunks.drop()
            self._blobs.drop()
            if self._sealer is not None:
                self._sealer.shutdown()

    def add(self, given: BinaryIO | bytes) -> str:
        if isinstance(given, bytes | bytearray | memoryview):
            first: bytes = bytes(given)
            if len(first) > SMALL:
                return self._cut(io.BytesIO(first))
        else:
            first = read_fully(given, SMALL + 1)
            if len(first) > SMALL:
                return self._cut(_Joined(first, given))
        self.size = len(first)
        digest = digest_of(first)
        self._keep(self._blobs, _name("blobs", digest), lambda: pack(first))
        return digest

    def _cut(self, stream: Any) -> str:
        whole = blake3()
        chunks: list[tuple[str, int]] = []
        for chunk in cut(stream):
            whole.update(chunk)
            name = digest_of(chunk)
            chunks.append((name, len(chunk)))
            self._unsealed += self._keep(self._chunks, _name("chunks", name), partial(pack, chunk))
            if self._unsealed > _SEAL_EVERY:
                self._seal_chunks()
        listed = ChunkList.of(chunks)
        self.size = listed.size
        digest = whole.hexdigest()
        self._keep(self._blobs, _name("blobs", digest), lambda: (listed.to_bytes(digest),))
        return digest

    def _keep(self, batch: Batch, name: str, payload: Callable[[], tuple[Buffer, ...]]) -> int:
        """Add an object unless it is there; returns how many bytes that took."""
        if name in self._seen:
            return 0
        self._seen.add(name)
        if batch.touch(name):
            return 0
        pieces = payload()
        batch.add(name, pieces)
        return sum(map(len, pieces))

    def _seal_chunks(self) -> None:
        if self._sealer is None:
            self._sealer = ThreadPoolExecutor(1, thread_name_prefix="modelkeep-seal")
        if self._sealing is not None:
            self._sealing.result()
        self._sealing = self._sealer.submit(_seal, self._chunks)
        self._chunks, self._unsealed = self._store.batch(), 0


def _seal(batch: Batch) -> None:
    try:
        batch.seal()
    finally:
        batch.drop()


class _Joined:
    """Bytes read already, followed by the rest of their stream."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int) -> bytes:
        first, self._first = self._first, b""
        return first + self._rest.read(size - len(first))


class _Reader(io.RawIOBase):
    """A span of a chunked blob as a file that can seek."""

    def __init__(self, fetch: Callable[[str], bytes], chunks: ChunkList, start: int, stop: int) -> None:
        self._fetch, self._chunks = fetch, chunks
        self._start, self._stop, self._at = start, stop, start
        self._held: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._at, io.SEEK_END: self._stop}[whence]
        if base + offset < self._start:
            raise ValueError(f"negative seek position {base + offset - self._start}")
        self._at = base + offset
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._stop:
            return 0
        index, start, stop = self._chunks.find(self._at)
        if self._held[0] != index:
            self._held = (index, self._fetch(self._chunks.digests[index]))
        count = min(len(buffer), min(stop, self._stop) - self._at)
        inside = self._at - start
        buffer[:count] = memoryview(self._held[1])[inside : inside + count]
        self._at += count
        return count


def put_all(blobs: BlobStore, bodies: Sequence[bytes]) -> list[str]:
    """Keep blobs that come again and again, durable together where the store can: digests. ``Unavailable``."""
    if not isinstance(blobs, Blobs):
        return [blobs.put(body) for body in bodies]
    kept = blobs.put_many({str(at): body for at, body in enumerate(bodies)}, gathered=True)
    return [digest for digest, _ in kept.values()]


def read_all(blobs: BlobStore, digest: str) -> bytes:
    """All bytes of a blob that fits in memory. Raises ``NotFound``, ``Damaged``."""
    if isinstance(blobs, Blobs):
        return blobs.read(digest)
    with blobs.open(digest) as stream:
        return stream.read()


def put_tree(blobs: BlobStore, files: Mapping[str, bytes | Path]) -> str:
    """Keep a folder of files and return the digest of its listing.

    Args:
        files: Bytes, or where to read them, by relative path with ``/``.

    Raises:
        Invalid: A path is absolute, climbs out, or is empty.
        Unavailable: The disk is full or away.
    """
    wrong = [Problem(path, "expected a relative path inside the tree") for path in files if not _is_inside(path)]
    if wrong:
        raise Invalid(wrong)
    if isinstance(blobs, Blobs):
        kept = {name: digest for name, (digest, _) in blobs.put_many(files).items()}
    else:
        kept = {name: _put_one(blobs, given) for name, given in files.items()}
    return blobs.put(msgspec.json.encode({"files": kept}, order="deterministic"))


def read_tree(blobs: BlobStore, digest: str) -> dict[str, str]:
    """Digest by path of what ``put_tree`` kept. Raises ``NotFound``, ``Damaged``."""
    with blobs.open(digest) as stream:
        listing = stream.read()
    try:
        files = msgspec.json.decode(listing, type=dict[str, dict[str, str]])["files"]
    except (msgspec.DecodeError, KeyError):
        raise Damaged(f"{digest} is not the listing of a tree") from None
    if not all(map(_is_inside, files)):
        raise Damaged(f"the tree {digest} names paths outside of it")
    return files


def read_files(blobs: BlobStore, digest: str) -> dict[str, bytes]:
    """Bytes by path of what ``put_tree`` kept, verified. Raises ``NotFound``, ``Damaged``."""
    found = {}
    for path, name in read_tree(blobs, digest).items():
        with blobs.open(name) as stream:
            found[path] = stream.read()
    return found


def verify_all(blobs: Blobs, progress: Progress | None = None) -> list[str]:
    """Read every blob and say what is wrong: one line per fault."""
    progress = progress or Silent()
    faults = blobs.below.unsettled()
    for done, digest in enumerate(blobs.digests(), start=1):
        try:
            blobs.verify(digest)
        except (Damaged, NotFound) as error:
            faults.append(f"blob {digest}: {error.message}")
        progress.step("verifying blobs", done)
    return faults


def _put_one(blobs: BlobStore, given: bytes | Path) -> str:
    if isinstance(given, bytes):
        return blobs.put(given)
    with given.open("rb") as file:
        return blobs.put(file)


def _name(folder: str, digest: str) -> str:
    return f"{folder}/{digest[:2]}/{digest[2:]}"


def _slice(span: tuple[int, int] | None) -> slice:
    return slice(0, None) if span is None else slice(max(span[0], 0), max(span[1], 0))


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return "\\" not in path and "\0" not in path and all(part not in ("", ".", "..") for part in parts)
