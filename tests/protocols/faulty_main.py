"""A serving process whose doors have a fault: requests with the id ``bad`` or ``half`` cannot be answered.

The doors raise on ``bad`` before anything is written, the transports on ``half`` when something is.
"""

from __future__ import annotations

import sys
from typing import Any

from modelkeep.app import serving
from modelkeep.protocols.grpc import frames
from modelkeep.protocols.grpc.outgoing import Outgoing
from modelkeep.protocols.mlflow import scoring
from modelkeep.protocols.oip import answers as oip
from modelkeep.protocols.oip_grpc import answers as oip_grpc
from modelkeep.serve.http import LeanProtocol


def faulty(make: Any) -> Any:
    def made(call: Any, *more: Any) -> Any:
        if getattr(call, "id", call) == "bad":
            raise KeyError("a fault of ours")
        return make(call, *more)

    return made


class Breaking:
    """A transport that breaks in the middle of one answer."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if b'"half"' in data:
            self._transport.write(data[: len(data) // 2])
            raise OSError("half of it is out")
        self._transport.write(data)


def broken(self: LeanProtocol, transport: Any) -> None:
    made(self, Breaking(transport))  # type: ignore[arg-type]


def half(self: Outgoing, exchange: Any, message: bytes, metadata: bytes) -> None:
    if b"half" in message:
        self.write(frames.frame(frames.HEADERS, frames.END_HEADERS, exchange.id, b"\x88"))
        raise OSError("half of it is out")
    whole(self, exchange, message, metadata)


if __name__ == "__main__":
    oip.answer = faulty(oip.answer)
    oip_grpc.answer = faulty(oip_grpc.answer)
    scoring.id_line = faulty(scoring.id_line)
    made, LeanProtocol.connection_made = LeanProtocol.connection_made, broken  # type: ignore[method-assign, assignment]
    whole, Outgoing.answer = Outgoing.answer, half  # type: ignore[method-assign]
    sys.exit(serving.main(sys.argv[1:]))
