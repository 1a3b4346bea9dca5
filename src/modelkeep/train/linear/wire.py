"""The parameter server's protocol: frames over TCP between workers and the shards that keep the weights.

A frame is a head of 25 bytes, little-endian (operation u8, keys u32, clock i64, number f64, values u32), then the
keys (u32, the shard's own row numbers) and the values (f32). To join, the keys are the pass and the part; in a
push, the clock is the batch's place in its part and the number that of its rows. Weights travel as float32: their
rounding, 6e-8 of a weight, is far below a stochastic step.

A connection begins with the shard's nonce of 32 random bytes; the caller answers with HMAC-SHA256(token, nonce)
(RFC 2104), where the token is made anew for each fit and given to its workers only. Nothing is read from a caller
that answers otherwise.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Unavailable

JOIN, PULL, PUSH, LEAVE, READ, LOAD, DONE, STATE = range(8)

HEAD = struct.Struct("<BIqdI")
NONCE = 32
LARGEST = 1 << 30
"""Most keys or values of one frame."""
PATIENCE = 120.0
"""Seconds to wait for an answer: the slowest worker's time for one batch is far below."""
NOTICE = 30
"""Seconds after which a machine that has gone without a word is noticed."""

Keys = npt.NDArray[np.uint32]
Values = npt.NDArray[np.float32]


@dataclass(slots=True)
class Frame:
    """One message."""

    op: int
    clock: int = 0
    number: float = 0.0
    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint32))
    values: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, np.float32))


def send(to: socket.socket, frame: Frame) -> None:
    """Write one frame. Raises ``OSError``."""
    head = HEAD.pack(frame.op, len(frame.keys), frame.clock, frame.number, len(frame.values))
    keys = np.ascontiguousarray(frame.keys, np.uint32)
    values = np.ascontiguousarray(frame.values, np.float32)
    to.sendall(head + keys.tobytes() + values.tobytes())


def receive(of: socket.socket) -> Frame:
    """Read one frame. Raises ``OSError``, ``ConnectionError`` when the other side has gone or talks nonsense."""
    op, keys, clock, number, values = HEAD.unpack(exactly(of, HEAD.size))
    if op > STATE or keys > LARGEST or values > LARGEST:
        raise ConnectionError("a frame that is none")
    body = exactly(of, 4 * (keys + values))
    return Frame(
        op,
        clock,
        number,
        np.frombuffer(body, np.uint32, keys),
        np.frombuffer(body, np.float32, values, 4 * keys),
    )


def prove(to: socket.socket, token: bytes) -> None:
    """The caller's side of the beginning."""
    to.sendall(_answer(token, bytes(exactly(to, NONCE))))


def admit(caller: socket.socket, token: bytes) -> bool:
    """The shard's side: whether the caller knows the token."""
    nonce = secrets.token_bytes(NONCE)
    caller.sendall(nonce)
    return hmac.compare_digest(exactly(caller, 32), _answer(token, nonce))


def connect(address: tuple[str, int], token: bytes) -> socket.socket:
    """A connection to a shard, its token proved.

    Raises:
        Unavailable: It cannot be reached.
    """
    try:
        made = socket.create_connection(address, timeout=PATIENCE)
        set_up(made)
        prove(made, token)
    except OSError as error:
        raise Unavailable(
            f"the parameter server at {address[0]}:{address[1]} is away: {error}",
            hint="it listens on the machine that runs the fit; let workers connect there, on any port",
        ) from error
    return made


def set_up(made: socket.socket) -> None:
    """Small frames go at once, and silence is looked into."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        *(("TCP_KEEPIDLE", NOTICE // 3), ("TCP_KEEPINTVL", NOTICE // 6), ("TCP_KEEPCNT", 4)),
        ("TCP_USER_TIMEOUT", NOTICE * 1000),
    ):
        if (option := getattr(socket, name, None)) is not None:  # not every system has all of them
            made.setsockopt(socket.IPPROTO_TCP, option, value)


def _answer(token: bytes, nonce: bytes) -> bytes:
    return hmac.digest(token, nonce, "sha256")


def exactly(of: socket.socket, count: int) -> bytearray:
    """So many bytes."""
    body = bytearray(count)
    view, got = memoryview(body), 0
    while got < count:
        size = of.recv_into(view[got:])
        if not size:
            raise ConnectionError("the other side has gone")
        got += size
    return body
