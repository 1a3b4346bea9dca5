"""The out-of-core linear models as scikit-learn estimators."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from modelkeep.core.ports import Engine, Progress, Silent
from modelkeep.train.linear import losses
from modelkeep.train.linear.blocks import Part, in_memory
from modelkeep.train.linear.learner import Learnt, Watch, learn
from modelkeep.train.linear.losses import Array, encoded
from modelkeep.train.linear.settings import Settings, settle
from modelkeep.train.log import RunLog, Unlogged

PERIOD = 250_000
"""Rows of a part of a matrix in memory, at most: what a worker learns between two averagings."""


class _OutOfCore(BaseEstimator):  # type: ignore[misc]
    """A linear model learnt by passes over blocks of rows, which need not fit in memory.

    What is minimised, and what each loss is for: ``modelkeep.train.linear.losses``. The methods:
    ``modelkeep.train.linear.passes``, ``descent``, ``parameter_server``.

    Args:
        loss: ``auto``, ``squared``, ``logistic``, ``softmax``, ``hinge``, ``squared_hinge``.
        penalty: ``none``, ``l2``, ``l1``, ``elastic_net``; never of the intercept.
        alpha: Weight of the penalty. scikit-learn's ``C`` is ``1 / (alpha * rows)``.
        l1_ratio: Share of L1 in ``elastic_net``.
        method: ``sgd``: a step per row. ``mini_batch``: a step per ``batch_size`` rows. ``local_sgd``: workers
            learn parts by themselves and are averaged. ``parameter_server``: workers share weights that are kept
            by processes. ``full_batch``: L-BFGS, the gradients of all parts added up. ``all_reduce``: one
            pass of ``local_sgd``, then ``full_batch`` from there.
        step: ``adagrad``, ``constant`` or ``inverse_scaling``.
        learning_rate: None takes 0.1 for ``adagrad`` and ``inverse_scaling``, 0.01 for ``constant``.
        batch_size: Rows per step; ``auto`` tries several; None takes 64 for ``mini_batch``, 1024 for
            ``parameter_server``, else 1.
        passes: Most passes (full-batch steps); None takes 10 (200).
        refine: Full-batch steps after the passes.
        tolerance: Passes end when they improve the loss by less than this share; full-batch steps when the
            gradient has shrunk to this share of what it was.
        early_stopping: Whether to judge passes on held-out rows, and keep the best.
        validation_fraction: Share of the rows to hold out; at most 100,000.
        patience: Passes without improvement before the end.
        workers: How many work at a time; None takes as many as the engine has, one without an engine. On a matrix
            in memory they are threads.
        shards: Processes that keep the weights of a ``parameter_server``.
        staleness: Steps a worker of a ``parameter_server`` may be ahead of the slowest; 0 is synchronous.
        shuffle: Whether each pass takes the rows in another order.
        fit_intercept: Whether there is an intercept.
        random_state: Decides the order of rows.

    Attributes:
        coef_: (outputs, features) for a classifier, (features,) for a regressor.
        intercept_: (outputs,), or a number.
        n_iter_: Passes and full-batch steps.
        converged_: Whether it ended by ``tolerance``.
        history_: What was measured after each pass or step.
    """

    def __init__(
        self,
        loss: str = "auto",
        penalty: str = "l2",
        alpha: float = 1e-6,
        l1_ratio: float = 0.15,
        method: str = "sgd",
        step: str = "adagrad",
        learning_rate: float | None = None,
        batch_size: int | str | None = None,
        passes: int | None = None,
        refine: int = 0,
        tolerance: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 2,
        workers: int | None = None,
        shards: int = 2,
        staleness: int = 0,
        shuffle: bool = True,
        fit_intercept: bool = True,
        random_state: int | None = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.method = method
        self.step = step
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.passes = passes
        self.refine = refine
        self.tolerance = tolerance
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.workers = workers
        self.shards = shards
        self.staleness = staleness
        self.shuffle = shuffle
        self.fit_intercept = fit_intercept
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from a matrix in memory, dense or sparse of shape (n, features).

        Raises:
            Invalid: A parameter, at ``train.params.NAME``, or the loss became infinite.
        """
        return self.fit_watched(X, y, Unlogged())

    def fit_watched(
        self, X: Any, y: Any, log: RunLog, *, progress: Progress | None = None, state: Path | None = None
    ) -> Any:
        """As ``fit``, with metrics per pass to ``log`` and checkpoints in ``state``."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, y_numeric=self._numeric)
        targets, classes = self._targets(y)
        settings = settle(self.get_params(deep=False), classes=classes)
        if settings.shuffle and settings.method not in ("full_batch",):
            order = np.random.default_rng(settings.seed).permutation(len(targets))
            X, targets = X[order], targets[order]
        workers = settings.workers or 1
        parts = in_memory(X, targets, workers * -(-len(targets) // (workers * PERIOD)))
        watch = Watch(log, progress or Silent(), state)
        return self._take(learn(parts, X.shape[1], classes, settings, watch=watch), settings)

    def fit_parts(
        self,
        parts: Sequence[Part],
        features: int,
        classes: npt.NDArray[Any] | None,
        engine: Engine | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """Learn from parts, wherever an engine reads them.

        Args:
            parts: See ``modelkeep.train.linear.blocks``.
            features: Columns of every block.
            classes: Sorted labels, which the parts' targets are coded by; None for a regressor.
            engine: None takes threads.
            watch: Who is told.

        Raises:
            Invalid: A parameter, at ``train.params.NAME``, or the loss became infinite.
            Unavailable: A worker, a shard or the disk is away.
        """
        count = 0
        if classes is not None:
            self.classes_, count = classes, len(classes)
        settings = settle(self.get_params(deep=False), classes=count)
        return self._take(learn(parts, features, count, settings, engine=engine, watch=watch), settings)

    _numeric = False

    def _targets(self, y: npt.NDArray[Any]) -> tuple[Array, int]:
        raise NotImplementedError

    def _take(self, learnt: Learnt, settings: Settings) -> Any:
        """Become what was learnt."""
        self.n_features_in_ = learnt.weights.shape[0] - 1
        self.loss_ = settings.loss
        self.n_iter_ = learnt.passes + learnt.iterations
        self.converged_ = learnt.converged
        self.history_ = learnt.history
        self.batch_size_ = learnt.batch_size
        self.coef_ = np.ascontiguousarray(learnt.weights[:-1].T)
        self.intercept_ = learnt.weights[-1].copy()
        if not learnt.converged and (learnt.iterations or self.passes is None):
            warnings.warn(
                f"not converged after {learnt.passes} passes and {learnt.iterations} full-batch steps: the loss "
                f"still fell by more than tolerance {settings.tolerance:g}; raise passes or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        if learnt.scan:
            from modelkeep.train.linear.scan import shown

            self.batch_size_scan_ = shown(learnt.scan)
        return self

    def _margins(self, X: Any) -> Array:
        """(n, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        margins: Array = np.asarray(X @ np.atleast_2d(self.coef_).T) + self.intercept_
        return margins

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _gives_chances(model: Any) -> bool:
    if vars(model).get("loss_", model.loss) in ("hinge", "squared_hinge"):
        raise AttributeError(f"the loss {model.loss!r} gives no probabilities; use logistic or softmax")
    return True


class OutOfCoreClassifier(ClassifierMixin, _OutOfCore):  # type: ignore[misc]
    __doc__ = _OutOfCore.__doc__

    def _targets(self, y: npt.NDArray[Any]) -> tuple[Array, int]:
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only, {self.classes_[0]!r}; a classifier needs at least two")
        return encoded(y, self.classes_), len(self.classes_)

    def decision_function(self, X: Any) -> Array:
        """Margins: (n,) of the second class for two classes, else (n, classes)."""
        margins = self._margins(X)
        return margins[:, 0] if len(self.classes_) == 2 else margins

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likeliest class of each row, (n,)."""
        margins = self.decision_function(X)
        chosen = (margins > 0.0).astype(np.intp) if margins.ndim == 1 else margins.argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    @available_if(_gives_chances)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Chances of the classes, (n, classes); for the losses ``logistic`` and ``softmax`` only.

        Raises:
            AttributeError: The loss gives none.
        """
        margins = self.decision_function(X)
        return losses.probabilities(self.loss_, margins)


class OutOfCoreRegressor(RegressorMixin, _OutOfCore):  # type: ignore[misc]
    __doc__ = _OutOfCore.__doc__
    _numeric = True

    def _targets(self, y: npt.NDArray[Any]) -> tuple[Array, int]:
        return encoded(y, None), 0

    def _take(self, learnt: Learnt, settings: Settings) -> Any:
        super()._take(learnt, settings)
        self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self

    def predict(self, X: Any) -> Array:
        """Values, (n,)."""
        return self._margins(X)[:, 0]
