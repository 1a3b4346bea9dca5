"""Networks of PyTorch and of Keras as estimators: an ONNX graph that predicts as scikit-learn's classes do.

What a user's ``fit`` returns is written as ONNX at once, so that keeping and serving it runs no code of the user's
and needs neither library. https://docs.pytorch.org/docs/stable/onnx.html,
https://keras.io/api/models/model_saving_apis/export/
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from modelkeep.core.errors import Invalid, Refused
from modelkeep.formats.onnx.graph import OPSET
from modelkeep.formats.onnx_runtime import options
from modelkeep.formats.signature import Label

BLOCK = 8192
"""Rows that a network sees at once, to bound the memory of its hidden layers."""
TOLERANCE = 1e-4
"""Largest difference between a network and its graph: of a probability, or of a value relative to the spread."""
_TRIED = 1000
_PATH = "train.algorithm"


class _Network(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """A graph from float32 rows (n, features) to one tensor.

    Attributes:
        graph_: The ONNX file.
        n_features_in_: Columns.
    """

    graph_: bytes
    n_features_in_: int

    def fit(self, X: Any, y: Any = None) -> _Network:
        """Never: a graph holds nothing to learn with.

        Raises:
            Refused: Always.
        """
        raise Refused("a network is trained by the function that made it; as a graph it only predicts")

    def _answers(self, X: Any) -> npt.NDArray[np.float64]:
        """(n, columns of the answer)."""
        session = _session(self.graph_)
        X = X.tocsr() if sparse.issparse(X) else np.asarray(X)
        name = session.get_inputs()[0].name
        parts = []
        for start in range(0, max(X.shape[0], 1), BLOCK):
            rows = X[start : start + BLOCK]
            dense = rows.toarray() if sparse.issparse(rows) else rows
            parts.append(session.run(None, {name: np.ascontiguousarray(dense, np.float32)})[0])
        found = np.concatenate(parts).astype(np.float64)
        return found.reshape(len(found), -1)


class NetworkRegressor(RegressorMixin, _Network):  # type: ignore[misc]
    """A network of one value a row."""

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """(n,)."""
        return self._answers(X)[:, 0]


class NetworkClassifier(ClassifierMixin, _Network):  # type: ignore[misc]
    """A network of probabilities: of each class, or of the second of two.

    Attributes:
        classes_: Sorted labels.
        single_: Whether it answers the probability of the second of two only.
    """

    classes_: npt.NDArray[Any]
    single_: bool

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """(n, classes)."""
        found = self._answers(X)
        return np.hstack([1.0 - found, found]) if self.single_ else found

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likeliest labels, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]  # type: ignore[no-any-return]


def is_network(made: Any) -> bool:
    """Whether it is a ``torch.nn.Module`` or a ``keras.Model``; neither library is imported for the question."""
    torch = sys.modules.get("torch")
    return (torch is not None and isinstance(made, torch.nn.Module)) or _keras(made)


def estimator_of(network: Any, rows: Any, task: str, classes: Sequence[Label] | None) -> _Network:
    """A trained network as a fitted estimator.

    Args:
        network: A ``torch.nn.Module``, or a ``keras.Model`` on the torch back end. Takes float32 of shape
            (n, features). For classification it answers probabilities, (n, classes) in the order of ``classes``,
            or (n,) or (n, 1) those of the second of two; for regression values, (n,) or (n, 1).
            Is set to evaluation.
        rows: Training rows as it saw them, dense or sparse, (n, features): some are tried.
        task: ``classification`` or ``regression``.
        classes: Sorted labels; None for regression.

    Raises:
        Invalid: At ``train.algorithm``: other answers than these.
        Refused: PyTorch cannot write it as ONNX, or the graph does not run or answers differently.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(network, torch.nn.Module):
        raise Invalid(
            "a Keras model can be kept from the torch back end only",
            path=_PATH,
            hint='set the environment variable KERAS_BACKEND to "torch" before keras is imported',
        )
    few = rows[: min(rows.shape[0], _TRIED)]
    x = np.ascontiguousarray(few.toarray() if sparse.issparse(few) else few, np.float32)
    said, graph = _written(torch, network.cpu().eval(), x)
    _check(said, len(x), task, classes)
    made: _Network = NetworkRegressor() if task == "regression" else NetworkClassifier()
    made.graph_, made.n_features_in_ = graph, x.shape[1]
    if isinstance(made, NetworkClassifier):
        made.classes_, made.single_ = np.asarray(classes), said.size == len(x)
    try:
        found = made._answers(x)
    except Exception as error:  # ONNX Runtime's own kinds
        raise Refused(
            f"the network's ONNX graph does not run on {len(x)} rows: {str(error)[:500]}",
            hint="take any number of rows: no shape or Python number of one batch may be part of the network",
        ) from error
    apart = np.abs(found - said.reshape(len(said), -1)).max(initial=0.0)
    if apart > TOLERANCE * (max(float(np.std(said)), 1e-9) if task == "regression" else 1.0):
        raise Refused(
            f"the network's ONNX graph answers otherwise than the network, by up to {apart:.3g}",
            hint="does it draw random numbers, or branch on its rows, when it predicts?",
        )
    return made


def _written(torch: Any, network: Any, x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], bytes]:
    """What the network says, and its graph."""
    given, written = torch.from_numpy(x), io.BytesIO()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = network(given)
            # the exporter that traces: it needs no other package, and takes any number of rows
            torch.onnx.export(
                network,
                (given[:2],),
                written,
                dynamo=False,
                opset_version=OPSET,
                input_names=["rows"],
                dynamic_axes={"rows": {0: "n"}},
            )
        answers = said.detach().numpy().astype(np.float64)
    except Exception as error:  # it raises what its parts raise
        text = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise Refused(
            f"{type(network).__name__} cannot be written as ONNX: {text[:500]}",
            hint="it takes float32 of shape (n, features) and answers one tensor; or return an estimator",
        ) from error
    model = onnx.load_model_from_string(written.getvalue())
    for node in model.graph.node:  # where in the user's files each came from
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return answers, model.SerializeToString(deterministic=True)


def _check(said: npt.NDArray[np.float64], rows: int, task: str, classes: Sequence[Label] | None) -> None:
    """Whether these are answers for the task."""
    width = said.shape[1] if said.ndim == 2 else 1 if said.ndim == 1 else 0
    count = len(classes or ())
    wanted = {1} if task == "regression" else {count, 1} if count == 2 else {count}
    if task not in ("classification", "regression") or width not in wanted or len(said) != rows:
        sizes = " or ".join(f"({rows}, {each})" for each in sorted(wanted))
        raise Invalid(
            f"the network answers {said.shape} for {rows} rows; {task} needs {sizes}",
            path=_PATH,
            hint="networks do classification and regression",
        )
    if not np.isfinite(said).all():
        raise Invalid(
            "the network answers NaN or infinity on training rows",
            path=_PATH,
            hint="scale the inputs, or learn in smaller steps",
        )
    sums = said.sum(axis=1) if width > 1 else np.ones(1)
    if task == "classification" and (said.min() < 0 or said.max() > 1 or np.abs(sums - 1).max() > 1e-3):
        last = "Sigmoid()" if width == 1 else "Softmax(dim=1)"
        raise Invalid(
            f"the network answers {said.min():.3g} to {said.max():.3g}, no probabilities",
            path=_PATH,
            hint=f"return torch.nn.Sequential(network, torch.nn.{last}), or end with that activation",
        )


def _keras(made: Any) -> bool:
    return any(
        kind.__name__ == "Model" and kind.__module__.partition(".")[0] == "keras" for kind in type(made).__mro__
    )


@lru_cache(maxsize=4)
def _session(graph: bytes) -> Any:
    """A graph made ready; not kept in the estimator, which must be plain data."""
    return onnxruntime.InferenceSession(graph, options(1), providers=["CPUExecutionProvider"])
