"""Single rows over gRPC with ``grpc.aio`` and messages made beforehand: ADDRESS SECONDS; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc.aio
import numpy as np
from sklearn.datasets import load_breast_cancer
from tritonclient.grpc import service_pb2

CALLS = 32
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def messages() -> list[bytes]:
    rows = load_breast_cancer().data[:100]
    found = []
    for row in rows:
        request = service_pb2.ModelInferRequest(model_name="bench")
        request.inputs.add(name="rows", shape=[1, len(row)], datatype="FP64")
        request.raw_input_contents.append(np.asarray(row, dtype="<f8").tobytes())
        found.append(request.SerializeToString())
    return found


async def main(address: str, seconds: float) -> None:
    sent = messages()
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        answer = service_pb2.ModelInferResponse.FromString(await call(sent[0]))
        assert answer.outputs
        end = time.perf_counter() + seconds

        async def client(place: int) -> None:
            while (began := time.perf_counter()) < end:
                place = (place + 1) % len(sent)
                await call(sent[place])
                latencies.append(time.perf_counter() - began)

        cpu = time.process_time()
        await asyncio.gather(*(client(n * 3) for n in range(CALLS)))
        cpu = time.process_time() - cpu
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1e3
    print(json.dumps([len(latencies) / seconds, p50, p99, cpu / seconds]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
