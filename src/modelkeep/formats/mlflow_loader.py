"""What MLflow calls to load a package as a ``python_function``: no pickle, digests verified, our runtimes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from modelkeep.core.errors import Invalid
from modelkeep.formats import runtimes
from modelkeep.formats.frames import columns_of
from modelkeep.formats.manifest import Folder
from modelkeep.formats.validate import Checker

TRUST = "MODELKEEP_TRUST"
"""Environment variable: names of types and functions that may run on loading, separated by commas."""


class PythonFunction:
    """A package behind MLflow's interface."""

    def __init__(self, folder: Path) -> None:
        files = Folder(folder)
        trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
        self.model = runtimes.load(files, trusted=trusted)
        self.checker = Checker(runtimes.signature(files), unknown="ignore")

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Labels or values of a DataFrame's rows, as scikit-learn's flavour gives them.

        Args:
            model_input: DataFrame with the signature's columns; dicts of columns and lists of rows are taken too.
            params: ``predict_method``: ``predict`` or ``predict_proba``.

        Raises:
            Invalid: The rows do not fit the signature, or there is no such method.
        """
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        method = (params or {}).get("predict_method", "predict")
        layout = self.checker.layout
        present = [name for name in layout.fields if name in frame.columns]
        table = pa.Table.from_pandas(frame[present], preserve_index=False)
        found = self.model.predict(self.checker.check(columns_of(table, layout.signature), len(frame)))
        if method == "predict":
            return np.asarray(next(iter(found.values())))
        if method == "predict_proba" and "probability" in found:
            return found["probability"]
        raise Invalid(f"this model has no {method!r}", path="params.predict_method")


def _load_pyfunc(path: str) -> PythonFunction:
    """MLflow's entry point."""
    return PythonFunction(Path(path))
