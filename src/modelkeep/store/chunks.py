"""Cutting bytes where their content says, packing them where it pays, and lists of what was cut.

Cuts: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication", IEEE TPDS 2020 (FastCDC).
An insertion moves only the cuts around it, so versions of one file share all other chunks.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import zstandard
from blake3 import blake3
from pyfastcdc import FastCDC

from modelkeep.core.errors import Damaged

Buffer = bytes | memoryview

SMALL = 64 * 1024
"""Bytes up to which a blob is kept in one piece, without a list."""

RAW, ZSTD, LIST = b"r", b"z", b"l"

_AVERAGE, _LEAST, _MOST = 256 * 1024, 64 * 1024, 1024 * 1024
_READ = 8 * 1024 * 1024
_SAMPLE = 4 * 1024
_PAYS = 0.92  # packed size over plain size above which reading it faster is worth more than the space
_ENTRY = struct.Struct("<32sI")
_HEAD = struct.Struct("<32s32sQ")  # BLAKE3 of what follows, digest of the blob, number of chunks


def digest_of(data: Buffer) -> str:
    """BLAKE3 of bytes, 64 hexadecimal characters."""
    return blake3(data).hexdigest()


def cut(stream: BinaryIO) -> Iterator[memoryview]:
    """Cut a stream into chunks of 64 KiB to 1 MiB (the last may be shorter). Memory: some 16 MiB.

    A cut depends on at most 1 MiB after the cut before it; so a chunk is final once so much has been read.
    """
    cutter = FastCDC(_AVERAGE, min_size=_LEAST, max_size=_MOST, normalized_chunking=2)
    held = b""
    while True:
        fresh = read_fully(stream, _READ)
        held += fresh
        ended = len(fresh) < _READ
        done = 0
        for chunk in cutter.cut_buf(held):
            if not ended and chunk.offset + _MOST > len(held):
                break
            done = chunk.offset + chunk.length
            yield memoryview(held)[chunk.offset : done]
        held = held[done:]
        if ended:
            return


def read_fully(stream: BinaryIO, size: int) -> bytes:
    """Bytes of a stream that may give fewer than asked for; fewer than ``size`` only at its end."""
    first = stream.read(size)
    if len(first) == size or not first:
        return first
    pieces = [first]
    left = size - len(first)
    while left and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def pack(data: Buffer) -> tuple[bytes, Buffer]:
    """What is written for ``data``: one byte that says how, and the bytes."""
    if len(data) < 128 or not _seems_packable(data):
        return RAW, data
    packed = zstandard.ZstdCompressor(level=1).compress(data)
    return (ZSTD, packed) if len(packed) < _PAYS * len(data) else (RAW, data)


def unpack(stored: bytes, digest: str, most: int = _MOST) -> bytes:
    """Undo ``pack`` and verify. Raises ``Damaged``."""
    data: bytes | None = None
    if stored[:1] == RAW:
        data = stored[1:]
    elif stored[:1] == ZSTD:
        try:
            data = zstandard.ZstdDecompressor().decompress(stored[1:], max_output_size=most)
        except zstandard.ZstdError:
            data = None
    if data is None or digest_of(data) != digest:
        raise Damaged(
            f"stored bytes do not match their digest {digest}",
            hint="run 'modelkeep doctor', and put the same bytes again or restore them from a backup",
        )
    return data


def _seems_packable(data: Buffer) -> bool:
    """Try a sample from the beginning, the middle and the end, so that packed data is not packed again."""
    if len(data) <= 4 * _SAMPLE:
        return True
    middle = (len(data) - _SAMPLE) // 2
    sample = b"".join((data[:_SAMPLE], data[middle : middle + _SAMPLE], data[-_SAMPLE:]))
    return len(zstandard.ZstdCompressor(level=1).compress(sample)) < 0.95 * len(sample)


@dataclass(frozen=True, slots=True)
class ChunkList:
    """The chunks of one blob, in order.

    Attributes:
        digests: BLAKE3 of each chunk.
        stops: Where each chunk ends in the blob.
    """

    digests: tuple[str, ...]
    stops: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self.stops[-1] if self.stops else 0

    def find(self, position: int) -> tuple[int, int, int]:
        """Index, start and stop of the chunk that holds the byte at ``position``."""
        index = bisect_right(self.stops, position)
        return index, self.stops[index - 1] if index else 0, self.stops[index]

    @classmethod
    def of(cls, chunks: list[tuple[str, int]]) -> ChunkList:
        """From digest and length of each chunk."""
        return cls(tuple(d for d, _ in chunks), tuple(accumulate(length for _, length in chunks)))

    def to_bytes(self, blob: str) -> bytes:
        """What is written under the blob's digest, sealed by a BLAKE3 of its own."""
        starts = (0, *self.stops)
        pairs = zip(self.digests, self.stops, starts, strict=False)
        body = b"".join(_ENTRY.pack(bytes.fromhex(d), stop - start) for d, stop, start in pairs)
        sealed = bytes.fromhex(blob) + struct.pack("<Q", len(self.digests)) + body
        return LIST + blake3(sealed).digest() + sealed

    @classmethod
    def from_bytes(cls, stored: bytes, blob: str) -> ChunkList:
        """Read a list back. Raises ``Damaged``."""
        if len(stored) < 1 + _HEAD.size or blake3(stored[33:]).digest() != stored[1:33]:
            raise Damaged(f"the list of chunks of {blob} is damaged", hint="put the same bytes again")
        _, named, count = _HEAD.unpack_from(stored, 1)
        body = stored[1 + _HEAD.size :]
        if named.hex() != blob or len(body) != count * _ENTRY.size:
            raise Damaged(f"the list of chunks of {blob} belongs to another blob", hint="put the same bytes again")
        return cls.of([(digest.hex(), length) for digest, length in _ENTRY.iter_unpack(body)])
