"""The models that are served, as files every server can load, with requests and the answers they should get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.formats import inference, package


@dataclass(frozen=True)
class Case:
    """A trained model and rows to ask it about.

    Attributes:
        name: ``logistic``, ``forest``, ``thousand`` (trees) or ``text``.
        files: Our package.
        rows: What is asked, row by row.
        probability: (rows, classes), as scikit-learn gives it.
        columns: Names of the inputs.
    """

    name: str
    pipeline: Any
    files: dict[str, bytes]
    rows: list[list[Any]]
    probability: np.ndarray
    columns: list[str]

    def tensor(self, rows: Sequence[int], outputs: Sequence[str] = ()) -> bytes:
        """An Open Inference request with all inputs in one tensor."""
        block = [value for row in rows for value in self.rows[row]]
        text = self.name == "text"
        shape = [len(rows), len(self.columns)]
        name = self.columns[0] if text else "rows"
        datatype = "BYTES" if text else "FP64"
        kind = {"parameters": {"content_type": "str"}} if text else {}  # MLServer wants to be told
        shape = shape[:1] if text else shape
        request: dict[str, Any] = {
            "inputs": [{"name": name, "shape": shape, "datatype": datatype, **kind, "data": block}]
        }
        if outputs:
            request["outputs"] = [{"name": name} for name in outputs]
        return json.dumps(request).encode()

    def binary(self, rows: Sequence[int]) -> tuple[bytes, str]:
        """The same with raw tensors in and out: body, and the header line that goes with it."""
        data = np.array([self.rows[row] for row in rows], dtype="<f8").tobytes()
        tensor = {
            "name": "rows",
            "shape": [len(rows), len(self.columns)],
            "datatype": "FP64",
            "parameters": {"binary_data_size": len(data)},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        lines = "Content-Type: application/octet-stream\r\n"
        return head + data, f"{lines}Inference-Header-Content-Length: {len(head)}\r\n"

    def records(self, rows: Sequence[int]) -> bytes:
        """The same for ``mlflow models serve``: a table."""
        data = [self.rows[row] for row in rows]
        return json.dumps({"dataframe_split": {"columns": self.columns, "data": data}}).encode()

    def lists(self, rows: Sequence[int]) -> bytes:
        """The same for servers that define no protocol: rows as lists."""
        return json.dumps({"rows": [self.rows[row] for row in rows]}).encode()


def _logistic() -> tuple[Pipeline, pd.DataFrame, Any]:
    data = load_breast_cancer(as_frame=True)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), data.data.astype(float), data.target


def _forest() -> tuple[Pipeline, pd.DataFrame, Any]:
    data = load_breast_cancer(as_frame=True)
    return make_pipeline(RandomForestClassifier(100, random_state=0)), data.data.astype(float), data.target


def _thousand() -> tuple[Pipeline, pd.DataFrame, Any]:
    data = load_breast_cancer(as_frame=True)
    return make_pipeline(RandomForestClassifier(1000, random_state=0)), data.data.astype(float), data.target


_WORDS = 3000


def _text() -> tuple[Pipeline, pd.DataFrame, Any]:
    """Documents of 40 words whose frequencies depend on the class: 20 classes, a vocabulary of 3,000."""
    random = np.random.default_rng(0)
    words = np.array([f"w{n}x" for n in range(_WORDS)])
    base = 1 / np.arange(1, _WORDS + 1)
    topics = np.arange(2000) % 20
    tilt = [base * random.gamma(0.5, size=_WORDS) for _ in range(20)]
    documents = [" ".join(random.choice(words, 40, p=tilt[topic] / tilt[topic].sum())) for topic in topics]
    return make_pipeline(TfidfVectorizer(), MultinomialNB()), pd.DataFrame({"document": documents}), topics


_CASES = {"logistic": _logistic, "forest": _forest, "thousand": _thousand, "text": _text}


def make(name: str) -> Case:
    """Train one."""
    pipeline, frame, y = _CASES[name]()
    if name == "text":  # ours takes a table, the peers' a list of texts
        given: Any = frame["document"]
        columns = ColumnTransformer([("document", TfidfVectorizer(), "document")])
        whole = make_pipeline(columns, MultinomialNB()).fit(frame, y)
    else:
        given, whole = frame, pipeline
    pipeline.fit(given, y)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    found = inference.infer(table, list(frame.columns), "classification", [int(label) for label in np.unique(y)])
    files = package.build(whole, found, table).files
    probability = pipeline.predict_proba(given)
    return Case(name, pipeline, files, frame.to_numpy().tolist(), probability, list(frame.columns))


def save(case: Case, folder: Path) -> None:
    """What peers load: the scikit-learn pipeline and the graph."""
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(case.pipeline, folder / "model.joblib")
    if "model.onnx" in case.files:
        (folder / "model.onnx").write_bytes(case.files["model.onnx"])
