"""The door for ``inference.GRPCInferenceService``: Open Inference Protocol v2 and Triton's extensions over gRPC.

https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from google.protobuf.json_format import ParseDict

from modelkeep.core.errors import ModelkeepError, NotFound, Unavailable
from modelkeep.protocols.grpc import encode, messages
from modelkeep.protocols.grpc.exchange import Exchange, Method
from modelkeep.protocols.grpc.status import Code, RpcError
from modelkeep.protocols.oip import about, rest
from modelkeep.protocols.oip.answers import wishes
from modelkeep.protocols.oip_grpc import answers, requests
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.dataplane import DataPlane

SERVICE: Final = "inference.GRPCInferenceService"
EXTENSIONS: Final = sorted({*about.EXTENSIONS} - {"binary_tensor_data"})  # which is REST's
_UNSUPPORTED: Final = {
    **{
        f"{where}SharedMemory{what}": "shared memory is not supported; send tensors in the request"
        for where in ("System", "Cuda")
        for what in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "traces are set by the environment, not by requests",
    "LogSettings": "logs are set by the environment, not by requests",
}


class _Reply(Protocol):
    """Where the answer to one inference request goes."""

    def answer(self, message: bytes) -> None: ...

    def fault(self, error: Exception) -> None: ...


class _All:
    """Answers with every output: the hot case."""

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.answer(answers.answer(call, batch))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink.fault(error)


class _Chosen:
    """Answers with the requested outputs."""

    def answer(self, call: Call, batch: Batch) -> None:
        reply, wanted = call.sink
        reply.answer(answers.answer(call, batch, wanted))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink[0].fault(error)


_ALL = _All()
_CHOSEN = _Chosen()


class InferenceService:
    """The door.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._requests = requests.Requests()

    def methods(self) -> dict[bytes, Method]:
        """Every method by its path."""
        simple: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda asked: {"live": True},
            "ServerReady": lambda asked: {"ready": self._plane.generation >= 0},
            "ServerMetadata": lambda asked: {
                "name": "modelkeep",
                "version": rest.VERSION,
                "extensions": EXTENSIONS,
            },
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._config,
            "ModelStatistics": lambda asked: about.statistics(self._plane, asked.name, asked.version),
            "RepositoryIndex": lambda asked: {"models": about.index(self._plane, ready=asked.ready)},
        }
        found = {name: _simple(name, function) for name, function in simple.items()}
        for name, work in (("RepositoryModelLoad", about.load), ("RepositoryModelUnload", about.unload)):
            found[name] = _slow(name, partial(work, self._plane))
        found |= {name: _unsupported(why) for name, why in _UNSUPPORTED.items()}
        found["ModelInfer"] = Method(self._infer)
        found["ModelStreamInfer"] = Method(self._stream, _ended)
        return {f"/{SERVICE}/{name}".encode(): method for name, method in found.items()}

    # inference

    def _infer(self, exchange: Exchange, data: bytes) -> None:
        self._submit(exchange, exchange, data)

    def _submit(self, exchange: Exchange, reply: _Reply, data: bytes) -> None:
        """Queue one request, whose answer goes to ``reply``. Raises ``ModelkeepError``."""
        read = self._requests.read(data)
        try:
            self._queue(exchange, reply, read, data)
        except ModelkeepError as error:
            raise self._plane.shown(read.asked.name, error) from None

    def _queue(self, exchange: Exchange, reply: _Reply, read: requests.Read, data: bytes) -> None:
        asked = read.asked
        endpoint = self._plane.endpoint(asked.name)
        endpoint.admit(data)
        key = exchange.head.key
        id = read.id or self._plane.new_id()
        lane = endpoint.lane(key or id, asked.version)
        rows = requests.rows(lane, read)
        deadline, priority = exchange.deadline, 0
        if asked.parameters is not None:
            deadline, priority = rest.urgency(asked.parameters, deadline)
        if asked.outputs:
            wanted = wishes(lane, asked.outputs, None)
            lane.submit(Call(rows, id, _CHOSEN, (reply, wanted), key, deadline, priority))
        else:
            lane.submit(Call(rows, id, _ALL, reply, key, deadline, priority))

    def _stream(self, exchange: Exchange, data: bytes) -> None:
        """One request of a stream; answers go in the order of the requests, errors as messages of the stream."""
        if exchange.state is None:
            exchange.state = deque()
        turn = _Turn(exchange)
        exchange.state.append(turn)
        try:
            self._submit(exchange, turn, data)
        except ModelkeepError as error:
            turn.fault(error)

    # what is served

    def _model_ready(self, asked: Any) -> dict[str, Any]:
        try:
            self._plane.endpoint(asked.name).lane("", asked.version)
        except (NotFound, Unavailable):
            return {"ready": False}
        return {"ready": True}

    def _model_metadata(self, asked: Any) -> dict[str, Any]:
        found = rest.metadata(self._plane.endpoint(asked.name), asked.version)
        found.pop("parameters")
        return found

    def _config(self, asked: Any) -> dict[str, Any]:
        return {"config": about.config(self._plane.endpoint(asked.name), asked.version)}


class _Turn:
    """One request of a stream, whose answer waits for those before it."""

    __slots__ = ("_exchange", "_message")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._message: bytes | None = None

    def answer(self, message: bytes) -> None:
        self._tell(encode.sized(2, message))

    def fault(self, error: Exception) -> None:
        self._tell(encode.text(1, str(error)))

    def _tell(self, message: bytes) -> None:
        self._message = message
        turns: deque[_Turn] = self._exchange.state
        while turns and (first := turns[0]._message) is not None:
            turns.popleft()
            self._exchange.send(first)
        if not turns and self._exchange.half:
            self._exchange.finish()


def _ended(exchange: Exchange) -> None:
    if not exchange.state:
        exchange.finish()


def _simple(name: str, function: Callable[[Any], dict[str, Any]]) -> Method:
    """A method that answers at once from what is known."""
    asked = messages.message(f"inference.{name}Request")
    answered = messages.message(f"inference.{name}Response")

    def call(exchange: Exchange, data: bytes) -> None:
        found = ParseDict(function(messages.decode(asked, data)), answered(), ignore_unknown_fields=True)
        exchange.answer(found.SerializeToString())

    return Method(call)


def _slow(name: str, work: Callable[[str], None]) -> Method:
    """A method about one model that may take long, in a thread; its answer is empty."""
    asked = messages.message(f"inference.{name}Request")
    empty = messages.message(f"inference.{name}Response")().SerializeToString()

    def call(exchange: Exchange, data: bytes) -> None:
        model = messages.decode(asked, data).model_name

        def done(working: asyncio.Future[None]) -> None:
            try:
                working.result()
            except Exception as error:
                exchange.fault(error)
            else:
                exchange.answer(empty)

        # a task has the context of whoever asks, and hands it to the thread
        task = asyncio.get_running_loop().create_task(asyncio.to_thread(work, model))
        task.add_done_callback(done)

    return Method(call)


def _unsupported(why: str) -> Method:
    def call(exchange: Exchange, data: bytes) -> None:
        raise RpcError(Code.UNIMPLEMENTED, why)

    return Method(call)
