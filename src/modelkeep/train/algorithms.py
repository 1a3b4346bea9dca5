"""Algorithms by short name, by import path, or written by the user, behind one way to make an estimator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelkeep.core.errors import Invalid, Problem
from modelkeep.core.plugins import load_object, require, user_code
from modelkeep.spec.names import ALGORITHMS, nearest, unknown

LARGE = 10_000
"""Rows from which a family's ``large`` defaults apply."""


@dataclass(frozen=True, slots=True)
class Family:
    """A short name.

    Attributes:
        classes: Import path of the class per task.
        defaults: Parameters that differ from the class's own, and why they are good is said beside them.
        large: The same, from ``LARGE`` rows on.
        by_task: The same, for one task only.
        dense: Much faster on a dense matrix, so a sparse one is made dense while it fits in memory.
        float32: The estimator works in single precision anyway (trees) or gains by it (networks).
        calibrate: Gives no probabilities itself, so they are calibrated by cross-validation (Platt 1999).
        serial: Fits on one core, so several fits are worth running at a time.
        extra: The package and extra it comes with; empty for what is always there.
        coded: Its classifier takes the labels 0 to k - 1 only.
    """

    classes: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    large: Mapping[str, Any] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dense: bool = False
    float32: bool = False
    calibrate: bool = False
    serial: bool = False
    extra: str = ""
    coded: bool = False


def _pair(module: str, classifier: str = "", regressor: str = "") -> dict[str, str]:
    named = {"classification": classifier, "regression": regressor}
    return {task: f"{module}:{name}" for task, name in named.items() if name}


_ENSEMBLE = "sklearn.ensemble"
_LINEAR = "sklearn.linear_model"

FAMILIES: dict[str, Family] = {
    "linear": Family(_pair(_LINEAR, regressor="LinearRegression")),
    "ridge": Family(_pair(_LINEAR, regressor="Ridge")),
    "lasso": Family(_pair(_LINEAR, regressor="Lasso"), {"max_iter": 10_000}, serial=True),
    # 100 iterations, the class's own, stop before convergence on unscaled columns.
    "logistic_regression": Family(_pair(_LINEAR, "LogisticRegression"), {"max_iter": 1000}),
    # The log loss makes it logistic regression, with probabilities; the class's own hinge has none.
    "sgd": Family(
        _pair(_LINEAR, "SGDClassifier", "SGDRegressor"),
        by_task={"classification": {"loss": "log_loss"}},
        serial=True,
    ),
    "linear_out_of_core": Family(
        _pair("modelkeep.train.linear.estimator", "OutOfCoreClassifier", "OutOfCoreRegressor"), serial=True
    ),
    "multinomial_naive_bayes": Family(_pair("sklearn.naive_bayes", "MultinomialNB")),
    "gaussian_naive_bayes": Family(_pair("sklearn.naive_bayes", "GaussianNB")),
    "linear_svm": Family(
        _pair("sklearn.svm", "LinearSVC", "LinearSVR"), {"max_iter": 5000}, calibrate=True, serial=True
    ),
    "svm": Family(_pair("sklearn.svm", "SVC", "SVR"), {"cache_size": 500}, calibrate=True, serial=True),
    "decision_tree": Family(
        _pair("sklearn.tree", "DecisionTreeClassifier", "DecisionTreeRegressor"),
        dense=True,
        float32=True,
        serial=True,
    ),
    "random_forest": Family(
        _pair(_ENSEMBLE, "RandomForestClassifier", "RandomForestRegressor"),
        {"n_jobs": -1},
        dense=True,
        float32=True,
    ),
    "extra_trees": Family(
        _pair(_ENSEMBLE, "ExtraTreesClassifier", "ExtraTreesRegressor"), {"n_jobs": -1}, dense=True, float32=True
    ),
    "gradient_boosting": Family(
        _pair(_ENSEMBLE, "GradientBoostingClassifier", "GradientBoostingRegressor"),
        dense=True,
        float32=True,
        serial=True,
    ),
    "hist_gradient_boosting": Family(
        _pair(_ENSEMBLE, "HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), dense=True
    ),
    "xgboost": Family(
        _pair("xgboost", "XGBClassifier", "XGBRegressor"), dense=True, float32=True, extra="xgboost", coded=True
    ),
    # Else the order of sums, and so the trees, depend on how many threads there are.
    "lightgbm": Family(
        _pair("lightgbm", "LGBMClassifier", "LGBMRegressor"),
        {"verbose": -1, "deterministic": True, "force_row_wise": True},
        dense=True,
        extra="lightgbm",
    ),
    "knn": Family(_pair("sklearn.neighbors", "KNeighborsClassifier", "KNeighborsRegressor"), {"n_jobs": -1}),
    # On many rows a held-out tenth tells when to stop, long before 200 epochs.
    "mlp": Family(
        _pair("sklearn.neural_network", "MLPClassifier", "MLPRegressor"),
        large={"early_stopping": True},
        float32=True,
    ),
    "isolation_forest": Family(
        {"anomaly": f"{_ENSEMBLE}:IsolationForest"}, {"n_jobs": -1}, dense=True, float32=True
    ),
}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What the declaration names, found and ready to make estimators.

    Attributes:
        name: As declared.
        task: ``classification``, ``regression`` or ``anomaly``.
        make: The class, or the user's function.
        family: What is known beforehand about a short name; empty for others.
        function: Whether ``make`` is a user's ``fit(data, params, run) -> estimator``.
    """

    name: str
    task: str
    make: Callable[..., Any]
    family: Family
    function: bool = False

    def params(
        self, given: Mapping[str, Any], *, seed: int, rows: int, path: str = "train.params"
    ) -> dict[str, Any]:
        """The parameters in full: good defaults, then what was given, then the seed where one is accepted.

        Raises:
            Invalid: A parameter the class does not have, at ``path.NAME``, with the nearest right name.
        """
        if self.function:
            return dict(given)
        known, open_ended = _accepted(self.make)
        if self.family.extra:  # these take any name, and leave unsaid that they do not know it
            known, open_ended = {*self.make().get_params(), *self.family.defaults}, False
        if self._calibrated:
            known |= {"calibrate"}
        problems = (
            []
            if open_ended
            else [self._unknown(name, known, path) for name in given if name.split("__", 1)[0] not in known]
        )
        if problems:
            raise Invalid(problems)
        large = self.family.large if rows >= LARGE else {}
        good = {**self.family.defaults, **self.family.by_task.get(self.task, {}), **large}
        full = {name: value for name, value in good.items() if name in known or open_ended}
        if "random_state" in known:
            full["random_state"] = seed
        return {**full, **given}

    def estimator(self, params: Mapping[str, Any], *, smallest_class: int) -> Any:
        """An unfitted estimator.

        Args:
            params: In full, from ``params``.
            smallest_class: Rows of the rarest class; calibration needs two of each.

        Raises:
            Invalid: A nested parameter (``estimator__C``) the class does not have.
            UserCodeFailed: The class is the user's and its constructor raised.
        """
        params = dict(params)
        calibrate = params.pop("calibrate", True)
        plain = {name: value for name, value in params.items() if "__" not in name}
        nested = {name: value for name, value in params.items() if "__" in name}
        with user_code(f"making {self.name}"):
            made = self.make(**plain)
        if nested:
            try:
                made.set_params(**nested)
            except ValueError as error:
                raise Invalid(str(error), path=f"train.params.{next(iter(nested))}") from error
        if self._calibrated and calibrate and smallest_class >= 2:
            from sklearn.calibration import CalibratedClassifierCV

            return CalibratedClassifierCV(made, ensemble=False, cv=min(5, smallest_class))
        if self.family.coded and self.task == "classification":
            from modelkeep.formats.coded import CodedClassifier

            return CodedClassifier(made)
        return made

    @property
    def _calibrated(self) -> bool:
        return self.family.calibrate and self.task == "classification"

    def _unknown(self, name: str, known: set[str], path: str) -> Problem:
        close = nearest(name, sorted(known))
        guess = f" - did you mean {close!r}?" if close else ";"
        listed = ", ".join(sorted(known))
        return Problem(f"{path}.{name}", f"{self.name} has no parameter {name!r}{guess} it takes {listed}")


def tasks_of(name: str) -> tuple[str, ...]:
    """The tasks a short name can do; empty when ``name`` is not a short name."""
    family = FAMILIES.get(name)
    return tuple(family.classes) if family else ()


def resolve(name: str, task: str, *, base: Path) -> Algorithm:
    """Find the algorithm for a task.

    Args:
        name: Short name, or import path of a scikit-learn compatible class or of a function.
        task: ``classification``, ``regression`` or ``anomaly``.
        base: The declaration's folder, where the user's modules are looked for first.

    Raises:
        Invalid: No such algorithm, or it cannot do this task; at ``train.algorithm``.
        UserCodeFailed: The user's module raised while being imported.
        MissingExtra: The short name's library is not installed.
    """
    family = FAMILIES.get(name)
    if family is not None:
        if task not in tasks_of(name):
            able = ", ".join(other for other in FAMILIES if task in tasks_of(other))
            raise Invalid(
                f"{name} does {' and '.join(tasks_of(name))}, but the task is {task}",
                path="train.algorithm",
                hint=f"for {task} choose one of: {able}",
            )
        return Algorithm(name, task, _import(family.classes[task], family.extra), family)
    if ":" not in name and "." not in name:
        raise Invalid(
            unknown(name, ALGORITHMS, "an algorithm"),
            path="train.algorithm",
            hint="or an import path of a class or function: 'package.module:name'",
        )
    found = load_object(name, base=base, path="train.algorithm")
    if inspect.isclass(found):
        if not (hasattr(found, "fit") and hasattr(found, "predict")):
            raise Invalid(f"{name} has no fit and predict", path="train.algorithm")
        return Algorithm(name, task, found, Family({}))
    if not callable(found):
        raise Invalid(
            f"{name!r} is a {type(found).__name__}; expected a class or a function", path="train.algorithm"
        )
    return Algorithm(name, task, found, Family({}), function=True)


def _import(where: str, extra: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(require(module, extra) if extra else importlib.import_module(module), name)


def _accepted(make: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of a class's parameters, and whether it takes any others (``**kwargs``)."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return set(), True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    gone = {p.name for p in parameters if isinstance(p.default, str) and p.default == "deprecated"}
    return named - gone, any(p.kind is p.VAR_KEYWORD for p in parameters)
