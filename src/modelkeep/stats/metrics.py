"""The catalogue of metrics. Each is one vectorised function of truth, answers and a matrix of weights.

Values equal scikit-learn's to rounding. Where scikit-learn warns and answers 0 or fails because the rows cannot
say (one class only, a constant target, no rows), the answer here is NaN: "not known" must not look like "bad".

With more than two classes, ``precision``, ``recall`` and ``f1`` are macro averages, ``roc_auc`` and ``pr_auc`` are
macro averages of one class against the rest over the classes present (Provost and Domingos 2001), ``brier`` is the
sum over classes (Brier 1950), and ``calibration_error`` looks at the predicted class (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal

import numpy as np

from modelkeep.core.errors import Invalid
from modelkeep.stats.outputs import Array, Floats, Outputs, Ranking, View

__all__ = ["METRICS", "Metric", "Outputs", "applicable", "evaluate", "get", "replicate"]

CALIBRATION_BINS = 15
Compute = Callable[[View, Floats], Floats]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As written in a declaration.
        task: What kind of model it judges.
        higher_is_better: Direction.
        needs: Which of the model's answers it looks at.
        compute: ``(view, weights (R, n)) -> (R,)``; NaN where undefined.
    """

    name: str
    task: Literal["classification", "regression"]
    higher_is_better: bool
    needs: Literal["label", "probability", "value"]
    compute: Compute


def evaluate(name: str, y: Array, outputs: Outputs, weights: Array | None = None) -> float:
    """One metric over n rows.

    Args:
        name: A key of ``METRICS``.
        y: Truth, (n,).
        outputs: The model's answers for the same rows.
        weights: (n,) weights; None weighs all rows alike.

    Returns:
        The value; NaN where the rows leave it undefined.

    Raises:
        Invalid: Unknown metric, unequal lengths, or the model gives no such answers.
    """
    return float(replicate([name], View(y, outputs), weights)[name][0])


def replicate(names: Sequence[str], view: View, weights: Array | None = None) -> dict[str, Floats]:
    """Several metrics for each row of a weight matrix (R, n), or one weight vector (n,): (R,) by name."""
    count = len(view.y)
    matrix = np.ones((1, count)) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    metrics = [get(name) for name in names]
    if count == 0:
        return {metric.name: np.full(len(matrix), np.nan) for metric in metrics}
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {metric.name: metric.compute(view, matrix) for metric in metrics}


def get(name: str) -> Metric:
    """The metric of that name. Raises ``Invalid`` with the nearest right name."""
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known metrics: {', '.join(METRICS)}"
        raise Invalid(f"unknown metric {name!r}", hint=hint)
    return METRICS[name]


def applicable(task: str, outputs: Outputs) -> list[str]:
    """Names of the metrics that make sense for these answers, in the catalogue's order."""
    has = {"label": True, "probability": outputs.probability is not None, "value": outputs.value is not None}
    size = 0 if outputs.classes is None else len(outputs.classes)

    def fits(metric: Metric) -> bool:
        if metric.task != task or not has[metric.needs]:
            return False
        if metric.name.startswith("top_"):
            return int(metric.name.split("_")[1]) < size
        return size > 2 or not metric.name.endswith(("_macro", "_micro", "_weighted"))

    return [name for name, metric in METRICS.items() if fits(metric)]


def _mean(loss: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ loss / weights.sum(axis=1))


def _over(top: Floats, bottom: Floats, otherwise: float = 0.0) -> Floats:
    return np.where(bottom > 0, top / bottom, otherwise)


def _accuracy(view: View, weights: Floats) -> Floats:
    return _mean((view.truth == view.predicted).astype(np.float64), weights)


def _f_family(view: View, weights: Floats, *, part: str, average: str) -> Floats:
    """Precision, recall or F1 from per-class counts (van Rijsbergen 1979)."""
    true, said, both = view.margins(weights)
    if average == "positive" and view.binary:
        true, said, both = (margin[:, -1:] for margin in (true, said, both))
    elif average == "micro":
        true, said, both = (margin.sum(axis=1, keepdims=True) for margin in (true, said, both))
    present = (true + said) > 0
    bottom = {"precision": said, "recall": true, "f1": (true + said) / 2}[part]
    per_class = _over(both, bottom)
    if average == "weighted":
        return np.asarray((per_class * true).sum(axis=1) / true.sum(axis=1))
    if average == "positive" and view.binary:
        undefined = true == 0 if part == "recall" else ~present
        return np.where(undefined, np.nan, per_class)[:, 0]
    return np.asarray(np.where(present, per_class, 0.0).sum(axis=1) / present.sum(axis=1))


def _balanced_accuracy(view: View, weights: Floats) -> Floats:
    """Mean recall over the classes present; NaN with fewer than two (Brodersen et al. 2010)."""
    true, _, both = view.margins(weights)
    present = (true > 0).sum(axis=1)
    return np.where(present < 2, np.nan, _over(both, true).sum(axis=1) / present)


def _mcc(view: View, weights: Floats) -> Floats:
    """Matthews' correlation, for any number of classes (Gorodkin 2004)."""
    true, said, both = view.margins(weights)
    total = true.sum(axis=1)
    top = both.sum(axis=1) * total - (true * said).sum(axis=1)
    spread = (total**2 - (said**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    return _over(top, np.sqrt(spread), np.nan)


def _auc(ranking: Ranking, weights: Floats) -> Floats:
    """Mann-Whitney with ties counted half (Hanley and McNeil 1982): one pass over each resample, sorted once."""
    found = np.empty(len(weights))
    below = np.zeros(len(ranking.down) + 1)
    for index, row in enumerate(weights):
        np.cumsum(row[ranking.down], out=below[1:])
        own = row[ranking.up]
        lost = np.einsum("i,i->", own, below[ranking.above] + below[ranking.upto])
        found[index] = 1 - lost / (2 * own.sum() * below[-1])
    return found


def _average_precision(ranking: Ranking, weights: Floats) -> Floats:
    """Sum over thresholds of precision times the step in recall, without interpolation."""
    found = np.empty(len(weights))
    below, above = np.zeros(len(ranking.down) + 1), np.zeros(len(ranking.up) + 1)
    for index, row in enumerate(weights):
        np.cumsum(row[ranking.down], out=below[1:])
        own = row[ranking.up]
        np.cumsum(own, out=above[1:])
        hits = above[ranking.peers]
        precision = hits / np.maximum(hits + below[ranking.upto], 1e-300)
        found[index] = np.einsum("i,i->", own, precision) / above[-1]
    return found


def _ranked(view: View, weights: Floats, *, score: Callable[[Ranking, Floats], Floats]) -> Floats:
    per_class = np.stack([score(ranking, weights) for ranking in view.rankings])
    known = np.isfinite(per_class)
    return np.asarray(np.where(known, per_class, 0.0).sum(axis=0) / known.sum(axis=0))


def _log_loss(view: View, weights: Floats) -> Floats:
    """Mean negative log-likelihood, probabilities held off 0 and 1 by the machine epsilon of their type."""
    own = view.probability[np.arange(len(view.y)), view.truth]
    return _mean(-np.log(np.clip(own, view.epsilon, 1 - view.epsilon)), weights)


def _brier(view: View, weights: Floats) -> Floats:
    if view.binary:
        return _mean((view.probability[:, -1] - (view.truth == len(view.classes) - 1)) ** 2, weights)
    own = view.probability[np.arange(len(view.y)), view.truth]
    return _mean((view.probability**2).sum(axis=1) - 2 * own + 1, weights)


def _calibration_error(view: View, weights: Floats) -> Floats:
    """Expected calibration error over equal-width bins: sum of |stated - observed| by the bins' shares."""
    return np.asarray(np.abs(calibration_gaps(view, weights)).sum(axis=1) / weights.sum(axis=1))


def calibration_gaps(view: View, weights: Floats) -> Floats:
    """Sum of stated - observed in each bin of the stated probability, (R, bins), which adds up over parts.

    Args:
        weights: (R, n).
    """
    if view.binary:
        stated, right = view.probability[:, -1], view.truth == len(view.classes) - 1
    else:
        stated, right = view.probability.max(axis=1), view.truth == view.probability.argmax(axis=1)
    bins = np.clip((stated * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    gap = stated - right
    return np.stack([np.bincount(bins, row * gap, CALIBRATION_BINS) for row in weights])


def _top_k(view: View, weights: Floats, *, k: int) -> Floats:
    """Share of rows whose class is among the k most probable; of equals the later class counts as higher."""
    own = view.probability[np.arange(len(view.y)), view.truth][:, None]
    later = np.arange(len(view.classes)) > view.truth[:, None]
    rank = (view.probability > own).sum(axis=1) + ((view.probability == own) & later).sum(axis=1)
    return _mean((rank < k).astype(np.float64), weights)


def _mse(view: View, weights: Floats) -> Floats:
    return _mean((view.target - view.value) ** 2, weights)


def _rmse(view: View, weights: Floats) -> Floats:
    return np.sqrt(_mse(view, weights))


def _mae(view: View, weights: Floats) -> Floats:
    return _mean(np.abs(view.target - view.value), weights)


def _mape(view: View, weights: Floats) -> Floats:
    size = np.maximum(np.abs(view.target), np.finfo(np.float64).eps)
    return _mean(np.abs(view.target - view.value) / size, weights)


def _r2(view: View, weights: Floats) -> Floats:
    """Share of variance explained; NaN when the target does not vary."""
    centred = view.target - view.target.mean()
    spread = _mean(centred**2, weights) - _mean(centred, weights) ** 2
    tiny = 1e-14 * max(1.0, float(np.mean(centred**2)))
    return np.where(spread > tiny, 1 - _mse(view, weights) / spread, np.nan)


def _pinball(view: View, weights: Floats) -> Floats:
    """Pinball loss at the median (Koenker and Bassett 1978), which is half the mean absolute error."""
    return 0.5 * _mae(view, weights)


def _catalogue() -> dict[str, Metric]:
    found: list[Metric] = [Metric("accuracy", "classification", True, "label", _accuracy)]
    for average in ("positive", "macro", "micro", "weighted"):
        for part in ("precision", "recall", "f1"):
            name = part if average == "positive" else f"{part}_{average}"
            compute = partial(_f_family, part=part, average=average)
            found.append(Metric(name, "classification", True, "label", compute))
    found += [
        Metric("balanced_accuracy", "classification", True, "label", _balanced_accuracy),
        Metric("mcc", "classification", True, "label", _mcc),
        Metric("roc_auc", "classification", True, "probability", partial(_ranked, score=_auc)),
        Metric("pr_auc", "classification", True, "probability", partial(_ranked, score=_average_precision)),
        Metric("log_loss", "classification", False, "probability", _log_loss),
        Metric("brier", "classification", False, "probability", _brier),
        Metric("calibration_error", "classification", False, "probability", _calibration_error),
    ]
    for k in (2, 3, 5):
        found.append(Metric(f"top_{k}_accuracy", "classification", True, "probability", partial(_top_k, k=k)))
    losses: dict[str, Compute] = {"mse": _mse, "rmse": _rmse, "mae": _mae, "mape": _mape}
    found += [Metric(name, "regression", False, "value", loss) for name, loss in losses.items()]
    found.append(Metric("r2", "regression", True, "value", _r2))
    found.append(Metric("pinball", "regression", False, "value", _pinball))
    return {metric.name: metric for metric in found}


METRICS: dict[str, Metric] = _catalogue()
"""Every metric by name."""
