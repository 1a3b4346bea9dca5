"""FastAPI and ONNX Runtime as a careful user writes them: MODEL_FOLDER PORT. Runs in its own environment."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

folder, port = Path(sys.argv[1]), int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
given = session.get_inputs()[0]
dtype = {"tensor(double)": np.float64, "tensor(float)": np.float32}.get(given.type, object)
names = [output.name for output in session.get_outputs()]
app = FastAPI()


class Request(BaseModel):
    rows: list[list[float]] if dtype is not object else list[list[str]]


@app.post("/predict")
async def predict(request: Request) -> dict[str, list]:
    found = session.run(names, {given.name: np.array(request.rows, dtype=dtype)})
    return {name: value.tolist() for name, value in zip(names, found, strict=True)}


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
