"""A BentoML service over scikit-learn. Runs in its own environment; ``BENCH_MODEL`` is the model's folder."""

import os
from pathlib import Path

import bentoml
import joblib


@bentoml.service
class Bench:
    def __init__(self) -> None:
        self.model = joblib.load(Path(os.environ["BENCH_MODEL"]) / "model.joblib")

    @bentoml.api
    def predict(self, rows: list[list]) -> list:
        if isinstance(rows[0][0], str):
            rows = [row[0] for row in rows]
        return self.model.predict_proba(rows).tolist()
