"""Metrics of rows that are never held together: what is a sum is summed over parts, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from modelkeep.stats.metrics import METRICS, calibration_gaps, replicate
from modelkeep.stats.outputs import Outputs, View, positions
from modelkeep.stats.sketches import Moments
from modelkeep.train.evaluate import Evaluation, Interval

Floats = npt.NDArray[np.float64]

MEANS = (
    "log_loss",
    "brier",
    "top_2_accuracy",
    "top_3_accuracy",
    "top_5_accuracy",
    "mse",
    "mae",
    "mape",
    "pinball",
)
"""Metrics that are means over rows."""

SCORES = 1 << 20
"""Steps of a score by which rankings are counted: scores that differ by less than a millionth count as equal.
Several classes, each ranked against the rest, share the steps."""

RANKED = 32
"""Classes up to which rankings are counted: of more, each would have too few steps."""


@dataclass(frozen=True)
class Sums:
    """What adds up of the rows of a part.

    Attributes:
        rows: How many.
        pairs: Rows by class and predicted class, (K, K); empty without labels.
        means: Sum over rows, by metric.
        target: Count, mean and spread of the target; for regression.
        ranks: Rows by score of each ranked class, those of others and its own, (classes, 2, steps). Of two classes
            the positive one is ranked.
        gaps: Sum of stated - observed by bin of the stated probability.
        known: Whether the model knows the class of every row; else nothing is told, for metrics count such classes
            in ways that do not add up.
    """

    rows: int
    pairs: Floats
    means: dict[str, float] = field(default_factory=dict)
    target: Moments = field(default_factory=Moments)
    ranks: npt.NDArray[np.int64] | None = None
    gaps: Floats | None = None
    known: bool = True

    def merge(self, other: Sums) -> Sums:
        """Of both parts."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        if not (self.known and other.known):
            return Sums(self.rows + other.rows, np.zeros((0, 0)), known=False)
        return Sums(
            self.rows + other.rows,
            self.pairs + other.pairs,
            {name: self.means[name] + other.means[name] for name in self.means},
            self.target.merge(other.target),
            None if self.ranks is None or other.ranks is None else self.ranks + other.ranks,
            None if self.gaps is None or other.gaps is None else self.gaps + other.gaps,
        )


def partial(y: npt.NDArray[Any], outputs: Outputs, names: Sequence[str]) -> Sums:
    """The sums of a part.

    Args:
        y: Truth, (n,).
        outputs: Answers for the same rows.
        names: Metrics of interest.
    """
    rows = len(y)
    if not rows:
        return Sums(0, np.zeros((0, 0)))
    if outputs.classes is not None and (positions(y, outputs.classes) < 0).any():
        return Sums(rows, np.zeros((0, 0)), known=False)
    found = replicate([name for name in MEANS if name in names], View(y, outputs))
    means = {name: float(values[0]) * rows for name, values in found.items()}
    if outputs.classes is None:
        return Sums(rows, np.zeros((0, 0)), means, Moments.of(np.asarray(y, dtype=np.float64)))
    size = len(outputs.classes)
    truth = positions(y, outputs.classes)
    said = positions(outputs.label, outputs.classes) if outputs.label is not None else truth
    pairs = np.bincount(truth * size + said, minlength=size * size).reshape(size, size).astype(np.float64)
    ranks = None if outputs.probability is None else _ranks(outputs.probability, truth, size)
    gaps = None
    if outputs.probability is not None and "calibration_error" in names:
        gaps = calibration_gaps(View(y, outputs), np.ones((1, rows)))[0]
    return Sums(rows, pairs, means, ranks=ranks, gaps=gaps)


def _ranks(probability: Floats, truth: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.int64] | None:
    """Rows by score, (classes, 2, steps); None of too many classes, and of scores that are no probabilities."""
    score = probability[:, None] if probability.ndim == 1 else probability
    score = score[:, -1:] if size == 2 else score
    ranked = 1 if size == 2 else size
    if size > RANKED or score.shape[1] != ranked:
        return None
    if not (float(score.min()) >= 0 and float(score.max()) <= 1):  # an anomaly's score is no probability
        return None
    steps = SCORES // ranked
    step = np.minimum((score * steps).astype(np.int64), steps - 1)
    made = np.empty((ranked, 2, steps), np.int64)
    for place in range(ranked):
        own = truth == size - ranked + place
        made[place] = [np.bincount(step[side, place], minlength=steps) for side in (~own, own)]
    return made


def finish(sums: Sums, names: Sequence[str], classes: Sequence[Any] | None) -> dict[str, float]:
    """The metrics that the sums tell, exactly (those of ranks to a step of the score); none of unknown classes."""
    if not sums.known:
        return {}
    made = {name: total / sums.rows for name, total in sums.means.items()}
    if "mse" in made:
        spread = sums.target.squares / sums.rows
        varies = spread > 1e-14 * max(1.0, spread)  # as stats.metrics tells it
        made |= {"rmse": math.sqrt(made["mse"]), "r2": 1 - made["mse"] / spread if varies else math.nan}
    if classes is not None and sums.pairs.any():
        known = np.asarray(classes)
        truth, said = np.nonzero(sums.pairs)
        view = View(known[truth], Outputs(label=known[said], classes=known))
        labels = [name for name in names if METRICS[name].needs == "label"]
        weighed = replicate(labels, view, sums.pairs[truth, said])
        made |= {name: float(values[0]) for name, values in weighed.items()}
        if sums.ranks is not None:
            made |= _ranking(sums.ranks)
        if sums.gaps is not None:
            made["calibration_error"] = float(np.abs(sums.gaps).sum()) / sums.rows
    return {name: made[name] for name in names if name in made}


def _ranking(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    """The mean over ranked classes, as ``stats.metrics`` has it: of those with rows on both sides."""
    told = np.array([False, True])
    found: dict[str, list[float]] = {"roc_auc": [], "pr_auc": []}
    for counts in ranks:
        side, step = np.nonzero(counts)
        view = View(told[side], Outputs(probability=step / counts.shape[1], classes=told))
        for name, values in replicate(list(found), view, counts[side, step].astype(np.float64)).items():
            found[name] += [float(value) for value in values if math.isfinite(value)]
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}


def completed(sampled: Evaluation, exact: Mapping[str, float], rows: int) -> Evaluation:
    """A sample's evaluation with the values of all rows where they are known.

    Their intervals keep the sample's shape around the exact value, narrower by the square root of the rows' ratio,
    as standard errors are. Other metrics, slices and curves rest on the sample, as their ``rows`` say.
    """
    made = dict(sampled.metrics)
    for name, value in exact.items():
        if name not in made:
            continue
        own = made[name]
        away = math.sqrt(own.rows / rows) if rows else 1.0
        ends = [
            None if end is None or own.value is None else value + (end - own.value) * away
            for end in (own.low, own.high)
        ]
        known = value if math.isfinite(value) else None
        made[name] = Interval(value=known, low=ends[0], high=ends[1], rows=rows)
    return msgspec.structs.replace(sampled, metrics=made)
