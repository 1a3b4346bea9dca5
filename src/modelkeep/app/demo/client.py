"""The demo talks to Modelkeep as any user would: over HTTP, with the public protocols."""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from modelkeep.core.errors import Unavailable


class Http:
    """One keep-alive connection that is made again when it breaks."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._where = (host, port)
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and return its JSON.

        Raises:
            Unavailable: The server refused the connection or answered with an error.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if data is not None else {}
        for attempt in (1, 2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._where, timeout=60)
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                answer = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                self._connection = None
                if attempt == 2:
                    raise Unavailable(f"{method} {path}: {type(error).__name__} {error}") from error
        if response.status >= 400:
            raise Unavailable(f"{method} {path}: {response.status} {answer[:500].decode(errors='replace')}")
        return msgspec.json.decode(answer) if answer else None

    def wait_until_ready(self, path: str, limit: float = 60.0) -> None:
        """Ask ``path`` until it answers."""
        end = time.monotonic() + limit
        while True:
            try:
                self.call("GET", path)
                return
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)


def inference(rows: pa.Table, inputs: Sequence[str], request_id: str) -> dict[str, Any]:
    """The rows as an Open Inference Protocol v2 request; what is missing is null."""
    tensors = [
        {
            "name": name,
            "shape": [rows.num_rows],
            "datatype": _datatype(rows.schema.field(name).type),
            "data": _values(rows.column(name)),
        }
        for name in inputs
    ]
    return {"id": request_id, "inputs": tensors}


def probability_of_late(answer: Mapping[str, Any]) -> np.ndarray:
    """The probability of the second class for each row of an answer, shape (rows,)."""
    for output in answer["outputs"]:
        if output["name"] == "probability":
            return np.asarray(output["data"], float).reshape(output["shape"])[:, 1]
    raise Unavailable("the answer holds no output 'probability'")


def _datatype(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "INT64"
    return "FP64" if pa.types.is_floating(kind) else "BYTES"


def _values(column: pa.ChunkedArray) -> list[Any]:
    return [None if isinstance(value, float) and math.isnan(value) else value for value in column.to_pylist()]
