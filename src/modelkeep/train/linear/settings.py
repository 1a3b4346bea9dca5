"""The parameters of ``linear_out_of_core``, checked all at once, each fault at its field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from modelkeep.core.errors import Invalid, Problem
from modelkeep.spec.names import unknown

CLASSIFIER_LOSSES = ("auto", "logistic", "softmax", "hinge", "squared_hinge")
REGRESSOR_LOSSES = ("auto", "squared")
PENALTIES = ("none", "l2", "l1", "elastic_net")
METHODS = ("sgd", "mini_batch", "local_sgd", "parameter_server", "full_batch", "all_reduce")
STEPS = ("adagrad", "constant", "inverse_scaling")

RATES = {"adagrad": 0.1, "constant": 0.01, "inverse_scaling": 0.1}
BATCHES = {"mini_batch": 64, "parameter_server": 1024}
PASSES = 10
ITERATIONS = 200
SIZES = (1, 8, 64, 512, 4096)
"""What ``batch_size: auto`` tries."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to do, defaults filled in. Names as the estimator's parameters."""

    loss: str
    penalty: str
    alpha: float
    l1_ratio: float
    method: str
    step: str
    learning_rate: float
    batch_size: int | Literal["auto"]
    passes: int
    refine: int
    tolerance: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    workers: int
    shards: int
    staleness: int
    shuffle: bool
    fit_intercept: bool
    seed: int

    @property
    def penalties(self) -> tuple[float, float]:
        """``alpha * l1_ratio`` and ``alpha * (1 - l1_ratio)`` as the penalty sets them."""
        ratio = {"none": 0.0, "l2": 0.0, "l1": 1.0, "elastic_net": self.l1_ratio}[self.penalty]
        return (0.0, 0.0) if self.penalty == "none" else (self.alpha * ratio, self.alpha * (1.0 - ratio))


def settle(params: dict[str, Any], *, classes: int) -> Settings:
    """Check parameters and fill the defaults in.

    Args:
        params: The estimator's, every one of them.
        classes: How many; 0 for regression.

    Raises:
        Invalid: Lists every fault, at ``train.params.NAME``.
    """
    faults: list[Problem] = []
    _check_names(params, classes, faults)
    _check_numbers(params, faults)
    batch = params["batch_size"]
    if batch is not None and batch != "auto" and (isinstance(batch, bool) or not _whole(batch) or batch < 1):
        faults.append(_problem("batch_size", f"{batch!r}; expected a whole number from 1 on, or auto"))
    if params["method"] == "sgd" and batch not in (None, 1):
        faults.append(_problem("batch_size", f"{batch!r}, but sgd takes one row a step; use method: mini_batch"))
    for name in ("early_stopping", "shuffle", "fit_intercept"):
        if not isinstance(params[name], bool):
            faults.append(_problem(name, f"{params[name]!r}; expected true or false"))
    if faults:
        raise Invalid(faults)
    loss, method = params["loss"], params["method"]
    if loss == "auto":
        loss = "squared" if classes == 0 else "logistic" if classes <= 2 else "softmax"
    elif loss == "softmax" and classes <= 2:
        loss = "logistic"  # what softmax is for two classes, without its superfluous weights
    descent = method in ("full_batch", "all_reduce")
    seed = params["random_state"]
    return Settings(
        loss=loss,
        learning_rate=float(params["learning_rate"] or RATES[params["step"]]),
        batch_size=batch if batch == "auto" else int(batch or BATCHES.get(method, 1)),
        passes=int(params["passes"] or (ITERATIONS if descent else PASSES)),
        workers=int(params["workers"] or 0),
        seed=int(seed) if _whole(seed) else 0,
        **{
            name: params[name]
            for name in (
                *("penalty", "alpha", "l1_ratio", "method", "step", "refine", "tolerance", "early_stopping"),
                *("validation_fraction", "patience", "shards", "staleness", "shuffle", "fit_intercept"),
            )
        },
    )


def _check_names(params: dict[str, Any], classes: int, faults: list[Problem]) -> None:
    losses = CLASSIFIER_LOSSES if classes else REGRESSOR_LOSSES
    for name, known in (("loss", losses), ("penalty", PENALTIES), ("method", METHODS), ("step", STEPS)):
        value = params[name]
        if value not in known:
            what = (
                f"a {name} for {'classification' if classes else 'regression'}" if name == "loss" else f"a {name}"
            )
            faults.append(_problem(name, unknown(str(value), known, what)))


def _check_numbers(params: dict[str, Any], faults: list[Problem]) -> None:
    """Ranges, ends included; None stands for a default where there is one to be worked out."""
    for name, low, high in (("alpha", 0.0, math.inf), ("l1_ratio", 0.0, 1.0), ("tolerance", 0.0, math.inf)):
        value = params[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            upto = "on" if high == math.inf else f"to {high:g}"
            faults.append(_problem(name, f"{value!r}; expected a number from {low:g} {upto}"))
    for name, least in (
        ("passes", 1),
        ("refine", 0),
        ("patience", 1),
        ("workers", 1),
        ("shards", 1),
        ("staleness", 0),
    ):
        value = params[name]
        if value is None and name in ("passes", "workers"):
            continue
        if not _whole(value) or value < least:
            faults.append(_problem(name, f"{value!r}; expected a whole number from {least} on"))
    for name, high in (("learning_rate", math.inf), ("validation_fraction", 0.5)):
        value = params[name]
        if value is None and name == "learning_rate":
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= high
            or value == math.inf
        ):
            upto = "" if high == math.inf else f" and at most {high:g}"
            faults.append(_problem(name, f"{value!r}; expected a number above 0{upto}"))


def _whole(value: Any) -> bool:
    import numbers

    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _problem(name: str, message: str) -> Problem:
    return Problem(f"train.params.{name}", message)
