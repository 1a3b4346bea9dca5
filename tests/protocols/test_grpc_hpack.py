"""Header compression by the examples of RFC 7541, and by what the reference client sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.protocols.grpc.hpack import Decoder, HeaderError, huffman, literal


def test_requests_without_huffman_coding() -> None:
    """Appendix C.3: three requests of one connection."""
    decoder = Decoder(4096)
    start = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
    assert decoder.decode(bytes.fromhex("828684410f7777772e6578616d706c652e636f6d")) == start
    assert decoder.changes == 1
    assert decoder.decode(bytes.fromhex("828684be58086e6f2d6361636865")) == [
        *start,
        (b"cache-control", b"no-cache"),
    ]
    assert decoder.decode(bytes.fromhex("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565")) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


def test_responses_with_huffman_coding_and_eviction() -> None:
    """Appendix C.6: the table holds 256 bytes there, which the peer says by a change of its size."""
    decoder = Decoder(4096)
    first = decoder.decode(
        bytes.fromhex(
            "3fe101"  # 256 bytes
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff"
            "6e919d29ad171863c78f0b97c8e9ae82ae43d3"
        )
    )
    assert first == [
        (b":status", b"302"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ]
    assert decoder.decode(bytes.fromhex("4883640effc1c0bf")) == [(b":status", b"307"), *first[1:]]
    third = decoder.decode(
        bytes.fromhex(
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960"
            "d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        )
    )
    assert third[-1] == (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "bf",  # beyond the table
        "ff8080808080",  # a number without end
        "ffffffffffff0f",  # a number that is too large
        "00",
        "0003616263",  # a name without a value
        "000361",
        "0085ffffffffff",  # the end symbol within a Huffman code
        "008101",  # padding that is no padding
        "823fe11f",  # a change of the table's size after a header
        "3fe2ffff03",  # to more than was offered
    ],
)
def test_blocks_that_are_none(block: str) -> None:
    with pytest.raises(HeaderError):
        Decoder(4096).decode(bytes.fromhex(block))


def test_small_blocks_cannot_stand_for_large_headers() -> None:
    decoder = Decoder(16_384)
    decoder.decode(b"\x40\x01a" + b"\x7f" + bytes([0xA1, 0x1E]) + b"v" * (127 + 0x21 + (0x1E << 7)))
    with pytest.raises(HeaderError, match="too large"):
        decoder.decode(b"\xbe" * 5)


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=6))
def test_literals_come_back(pairs: list[tuple[bytes, bytes]]) -> None:
    assert Decoder(1 << 20).decode(b"".join(literal(*pair) for pair in pairs)) == pairs


@given(st.binary(max_size=60))
def test_no_bytes_are_our_fault(data: bytes) -> None:
    for read in (Decoder(4096).decode, huffman):
        try:
            read(data)
        except HeaderError:
            pass
