"""Saves the scikit-learn model of a folder as an MLflow model beside it. Runs in the peer's environment."""

import sys
from pathlib import Path

import joblib
import mlflow

folder = Path(sys.argv[1])
model = joblib.load(folder / "model.joblib")
mlflow.sklearn.save_model(
    model, str(folder / "mlflow"), pyfunc_predict_fn="predict_proba", serialization_format="cloudpickle"
)
