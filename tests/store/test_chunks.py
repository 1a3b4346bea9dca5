from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import Damaged
from modelkeep.store import chunks
from modelkeep.store.chunks import ChunkList, cut, digest_of, pack, unpack


def content(size: int, seed: int, repeats: int) -> bytes:
    """Random bytes with long repetitions, so that cuts are both found and missed."""
    chance = random.Random(seed)
    piece = chance.randbytes(max(size // repeats, 1))
    return (piece * repeats)[:size]


some_content = st.builds(content, st.integers(0, 6_000_000), st.integers(0, 10**6), st.integers(1, 40))


@settings(max_examples=30, deadline=None)
@given(some_content)
def test_chunks_add_up_and_keep_their_bounds(data: bytes) -> None:
    pieces = [bytes(piece) for piece in cut(io.BytesIO(data))]
    assert b"".join(pieces) == data
    assert all(len(piece) <= 1024 * 1024 for piece in pieces)
    assert all(len(piece) >= 64 * 1024 for piece in pieces[:-1])


@settings(max_examples=15, deadline=None)
@given(some_content, st.integers(1_100_000, 3_000_000))
def test_cuts_do_not_depend_on_how_much_is_read_at_once(data: bytes, size: int) -> None:
    expected = [bytes(piece) for piece in cut(io.BytesIO(data))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_READ", size)
        assert [bytes(piece) for piece in cut(io.BytesIO(data))] == expected


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5_000_000), st.integers(1, 5_000))
def test_an_insertion_changes_only_the_chunks_around_it(seed: int, at: int, length: int) -> None:
    data = random.Random(seed).randbytes(5_000_000)
    changed = data[:at] + random.Random(seed + 1).randbytes(length) + data[at:]
    before = {digest_of(piece) for piece in cut(io.BytesIO(data))}
    after = {digest_of(piece): len(piece) for piece in cut(io.BytesIO(changed))}
    fresh = sum(size for name, size in after.items() if name not in before)
    assert fresh <= 4 * 1024 * 1024


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.binary(max_size=3000), st.builds(content, st.integers(0, 200_000), st.integers(0, 9), st.just(9)))
)
def test_packing_is_undone(data: bytes) -> None:
    stored = b"".join(pack(data))
    assert len(stored) <= len(data) + 1
    assert unpack(stored, digest_of(data)) == data


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.data())
def test_any_changed_byte_is_seen(data: bytes, more: st.DataObject) -> None:
    stored = bytearray(b"".join(pack(data)))
    at = more.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= more.draw(st.integers(1, 255))
    try:
        assert unpack(bytes(stored), digest_of(data)) == data  # zstd ignores some bits of its header
    except Damaged:
        pass


lists = st.lists(st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(1, 2**20)), max_size=50)


@settings(max_examples=100, deadline=None)
@given(lists, st.binary(min_size=32, max_size=32).map(bytes.hex))
def test_lists_come_back_and_damage_to_them_is_seen(entries: list[tuple[str, int]], blob: str) -> None:
    made = ChunkList.of(entries)
    stored = made.to_bytes(blob)
    assert ChunkList.from_bytes(stored, blob) == made
    assert made.size == sum(size for _, size in entries)
    with pytest.raises(Damaged):
        ChunkList.from_bytes(stored, "0" * 64 if blob != "0" * 64 else "1" * 64)
    with pytest.raises(Damaged):
        ChunkList.from_bytes(stored[:-1], blob)
    with pytest.raises(Damaged):
        ChunkList.from_bytes(stored[:40] + bytes([stored[40] ^ 1]) + stored[41:], blob)


@given(lists.filter(bool), st.data())
def test_a_position_is_found_in_its_chunk(entries: list[tuple[str, int]], more: st.DataObject) -> None:
    made = ChunkList.of(entries)
    position = more.draw(st.integers(0, made.size - 1))
    index, start, stop = made.find(position)
    assert start <= position < stop
    assert stop - start == entries[index][1]
