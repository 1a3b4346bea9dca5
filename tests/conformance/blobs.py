"""What every ``BlobStore`` promises. Subclass, and give the fixture ``blobs``: an empty store."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3

from modelkeep.core.errors import NotFound
from modelkeep.core.ports import BlobStore

SIZES = [0, 1, 100, 65_535, 65_536, 65_537, 1_000_000, 5_000_003]


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class Trickle(io.RawIOBase):
    """A stream that gives a little at a time, as sockets do."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 10_007) if size >= 0 else 10_007)


class BlobStoreSuite:
    @pytest.mark.parametrize("size", SIZES)
    def test_bytes_come_back_under_their_blake3(self, blobs: BlobStore, size: int) -> None:
        data = content(size)
        digest = blobs.put(data)
        assert digest == blake3(data).hexdigest()
        assert blobs.exists(digest)
        with blobs.open(digest) as stream:
            assert stream.read() == data

    @pytest.mark.parametrize("size", SIZES)
    def test_a_stream_is_kept_like_its_bytes(self, blobs: BlobStore, size: int) -> None:
        data = content(size)
        assert blobs.put(Trickle(data)) == blobs.put(io.BytesIO(data)) == blobs.put(data)

    @pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
    def test_spans_are_slices(self, blobs: BlobStore, size: int) -> None:
        data = content(size)
        digest = blobs.put(data)
        for start, stop in [
            (0, size),
            (0, 0),
            (1, 2),
            (size // 3, size // 2),
            (size - 1, size + 10),
            (size, size),
        ]:
            with blobs.open(digest, (max(start, 0), stop)) as stream:
                assert stream.read() == data[max(start, 0) : stop]

    def test_an_open_blob_can_seek(self, blobs: BlobStore) -> None:
        data = content(2_000_000)
        stream = blobs.open(blobs.put(data))
        for position in (1_999_990, 5, 1_000_000):
            stream.seek(position)
            assert stream.read(100) == data[position : position + 100]
        assert stream.seek(-10, io.SEEK_END) == 1_999_990
        assert stream.read() == data[-10:]

    def test_putting_again_gives_the_same_digest(self, blobs: BlobStore) -> None:
        data = content(300_000)
        assert blobs.put(data) == blobs.put(data)

    def test_what_is_not_there_is_not_found(self, blobs: BlobStore) -> None:
        for unknown in ("0" * 64, "nonsense", "../../etc/passwd", ""):
            assert not blobs.exists(unknown)
            with pytest.raises(NotFound):
                blobs.open(unknown)
            blobs.delete(unknown)

    @pytest.mark.parametrize("size", [10, 500_000])
    def test_deleting_forgets(self, blobs: BlobStore, size: int) -> None:
        digest = blobs.put(content(size))
        blobs.delete(digest)
        assert not blobs.exists(digest)
        with pytest.raises(NotFound):
            blobs.open(digest)
        assert blobs.put(content(size)) == digest
        with blobs.open(digest) as stream:
            assert stream.read() == content(size)

    def test_deleting_one_spares_those_that_share_its_bytes(self, blobs: BlobStore) -> None:
        data = content(2_000_000)
        whole, head = blobs.put(data), blobs.put(data[:900_000])
        blobs.delete(head)
        with blobs.open(whole) as stream:
            assert stream.read() == data

    def test_many_threads_put_the_same_at_once(self, blobs: BlobStore) -> None:
        data = content(1_000_000)
        with ThreadPoolExecutor(4) as pool:
            digests = set(pool.map(lambda _: blobs.put(data), range(8)))
        assert len(digests) == 1
        with blobs.open(digests.pop()) as stream:
            assert stream.read() == data
