"""The training rows in every form an algorithm may want, each made once."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from modelkeep.core.errors import Invalid, UserCodeFailed
from modelkeep.core.plugins import user_code
from modelkeep.formats import network
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.encoding import encoded, to_frame
from modelkeep.train.task import Class, Target

Matrix = Any
"""A NumPy array or a SciPy sparse matrix of shape (rows, features)."""


@dataclass
class Raw:
    """The input columns before any feature step, as a DataFrame once somebody asks."""

    table: pa.Table
    inputs: Sequence[str]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """In the order of fitting."""
        return to_frame(self.table, self.inputs)


class Training:
    """What a fit sees; also the ``data`` of a user's ``fit(data, params, run)``.

    Attributes:
        matrix: The transformed inputs, (n, features), dense or sparse as the features made them.
        target: (n,), labels of their own type or float64 values; None without a target.
        features: The fitted scikit-learn transformer that made ``matrix``.
        task: ``classification``, ``regression`` or ``anomaly``.
        classes: Sorted labels; None unless classification.
        smallest: Rows of the rarest class.
    """

    def __init__(
        self,
        matrix: Matrix,
        target: Target,
        features: Any,
        raw: Raw,
        index: npt.NDArray[Any] | None = None,
    ) -> None:
        self.matrix = matrix
        self.target: npt.NDArray[Any] | None = target.y
        self.features = features
        self.task: str = target.task
        self.classes: tuple[Class, ...] | None = target.classes
        self.smallest: int = target.smallest
        self._target = target
        self._raw = raw
        self._index = index
        self._forms: dict[tuple[bool, bool], tuple[Matrix, Any]] = {}

    @classmethod
    def of(cls, table: pa.Table, inputs: Sequence[str], target: Target, transformer: Any) -> Training:
        """Transform the input columns once.

        Args:
            table: At least the columns ``inputs``.
            inputs: In the order the transformer was fitted on.
            target: Of the same rows.
            transformer: A fitted scikit-learn transformer of a DataFrame.

        Raises:
            UserCodeFailed: A feature function of the user's raised.
        """
        matrix = encoded(transformer, table, inputs)
        if isinstance(matrix, pd.DataFrame):
            matrix = matrix.to_numpy()
        return cls(matrix, target, transformer, Raw(table.select(list(inputs)), inputs))

    @cached_property
    def train(self) -> pd.DataFrame:
        """The raw inputs as a DataFrame, before any feature step."""
        frame = self._raw.frame
        return frame if self._index is None else frame.iloc[self._index]

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.matrix.shape[0])

    def take(self, index: npt.NDArray[np.intp]) -> Training:
        """The rows at ``index``, in that order."""
        y = None if self.target is None else self.target[index]
        smallest = self.smallest
        if y is not None and self.task == "classification":
            counts = np.unique(y, return_counts=True)[1]
            smallest = int(counts.min()) if len(counts) else 0
        target = Target(self.task, y, self.classes, smallest)
        own = index if self._index is None else self._index[index]
        return Training(self.matrix[index], target, self.features, self._raw, own)

    def suited(self, algorithm: Algorithm, estimator: Any) -> tuple[Matrix, Any]:
        """The matrix in the form the estimator works on, and the transformer that makes it that way.

        Sparse stays sparse where the estimator takes it and is not much slower for it. Precision drops to float32
        only where the estimator computes in it.

        Raises:
            Invalid: The estimator needs a dense matrix that does not fit in half of the free memory.
        """
        dense = sparse.issparse(self.matrix) and self._wants_dense(algorithm, estimator)
        key = (dense, algorithm.family.float32)
        if key not in self._forms:
            matrix = self.matrix
            if algorithm.family.float32 and matrix.dtype == np.float64:
                matrix = matrix.astype(np.float32)
            matrix = matrix.toarray() if dense else matrix
            self._forms[key] = (matrix, _densifying(self.features) if dense else self.features)
        return self._forms[key]

    def _wants_dense(self, algorithm: Algorithm, estimator: Any) -> bool:
        rows, columns = self.matrix.shape
        size = rows * columns * (4 if algorithm.family.float32 else 8)
        takes_sparse = _takes_sparse(estimator)
        if takes_sparse:
            return algorithm.family.dense and size <= free_memory() // 8
        if size > free_memory() // 2:
            raise Invalid(
                f"{algorithm.name} needs a dense matrix, and {rows} x {columns} takes {size / 1e9:.1f} GB",
                path="train.algorithm",
                hint="use fewer features (max_features, max_categories, hash), or an algorithm that takes sparse "
                "input: logistic_regression, sgd, multinomial_naive_bayes, linear_svm",
            )
        return True


def free_memory() -> int:
    """Bytes that can be had without swapping, as far as the system tells; 4 GB where it does not."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def fit_function(algorithm: Algorithm, data: Training, params: dict[str, Any], run: Any) -> Any:
    """Call the user's ``fit(data, params, run)`` and check what it returns; a network becomes an estimator.

    Raises:
        UserCodeFailed: It raised, with its own traceback.
        Invalid: What it returned cannot predict, or is a network with other answers than the task needs.
        Refused: It is a network that cannot be written as ONNX.
    """
    with user_code(f"{algorithm.name}(data, params, run)"):
        made = algorithm.make(data, params, run)
    if network.is_network(made):
        return network.estimator_of(made, data.matrix, data.task, data.classes)
    if not hasattr(made, "predict"):
        raise Invalid(
            f"{algorithm.name} returned a {type(made).__name__}, expected an estimator with predict, "
            "a torch.nn.Module or a keras.Model",
            path="train.algorithm",
        )
    return made


def wants_raw(estimator: Any, data: Training) -> bool:
    """Whether a user's estimator was fitted on the raw inputs (``data.train``), not on ``data.matrix``."""
    names = getattr(estimator, "feature_names_in_", None)
    return names is not None and list(names) == list(data.train.columns)


def _takes_sparse(estimator: Any) -> bool:
    """What the estimator's scikit-learn tags say; without tags, nothing is promised."""
    from sklearn.utils import get_tags

    try:
        return bool(get_tags(estimator).input_tags.sparse)
    except (AttributeError, TypeError, ValueError, UserCodeFailed):
        return False


def _densifying(transformer: Any) -> Any:
    """The same fitted ColumnTransformer giving dense output, so that the pipeline feeds the model rightly."""
    dense = copy.copy(transformer)
    dense.sparse_threshold = 0.0
    dense.sparse_output_ = False
    return dense
