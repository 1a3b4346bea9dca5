"""What one writes with grpcio: a constant, and the same model behind ONNX Runtime.

python -m benchmarks.serving_grpc.peers aio|uvloop|threads constant|FOLDER_WITH_MODEL_ONNX
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from modelkeep.protocols.grpc.messages import message

THREADS = 8


def answerer(what: str) -> Callable[[bytes], bytes]:
    """From the bytes of a request to those of its answer."""
    if what == "constant":
        constant = bytes(120)
        return lambda data: constant
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(Path(what, "model.onnx"), options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    request, response = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")

    def answer(data: bytes) -> bytes:
        asked = request.FromString(data)
        block = np.frombuffer(asked.raw_input_contents[0]).reshape(asked.inputs[0].shape)
        label, probability = session.run(None, {given.name: block})
        made = response(model_name=asked.model_name, model_version="1", id="x")
        made.outputs.add(name="label", datatype="INT64", shape=label.shape)
        made.outputs.add(name="probability", datatype="FP64", shape=probability.shape)
        made.raw_output_contents.extend([label.tobytes(), probability.astype(np.float64).tobytes()])
        return bytes(made.SerializeToString())

    return answer


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method is this one; messages are bytes."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = grpc.unary_unary_rpc_method_handler(method)

    def service(self, details: Any) -> Any:
        return self._method


async def asynchronous(answer: Callable[[bytes], bytes]) -> None:
    async def method(data: bytes, context: Any) -> bytes:
        return answer(data)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(method),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def threaded(answer: Callable[[bytes], bytes]) -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((Handler(lambda data, context: answer(data)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    kind, what = sys.argv[1:]
    if kind == "threads":
        threaded(answerer(what))
    else:
        (uvloop.run if kind == "uvloop" else asyncio.run)(asynchronous(answerer(what)))
