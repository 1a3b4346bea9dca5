"""Curves and tables behind the metrics, small enough to keep: at most 200 points each, JSON types only."""

from __future__ import annotations

import numpy as np

from modelkeep.stats.metrics import CALIBRATION_BINS
from modelkeep.stats.outputs import Array, Floats, Ints, Outputs, Ranking, View

POINTS = 200
Curve = dict[str, list[float]]


def confusion(y: Array, outputs: Outputs) -> dict[str, list[list[int]] | list[str]]:
    """``{"classes": [K], "counts": [[K] * K]}``: rows are true classes, columns predicted ones."""
    view = View(y, outputs)
    size = len(view.classes)
    counts = np.bincount(view.truth * size + view.predicted, minlength=size * size).reshape(size, size)
    return {"classes": [str(name) for name in view.classes], "counts": counts.tolist()}


def roc_curve(y: Array, outputs: Outputs) -> dict[str, Curve]:
    """Per scored class ``{"x": false alarms, "y": hits, "threshold"}``: rates from (0, 0) to (1, 1).

    The scored classes are the positive one of two, or each of several against the rest; a class without both
    positive and negative rows is left out.
    """
    found = {}
    for name, hits, alarms, thresholds in _counts(View(y, outputs)):
        if hits[-1] and alarms[-1]:
            keep = _thin(alarms / alarms[-1], hits / hits[-1])
            found[name] = _curve(alarms[keep] / alarms[-1], hits[keep] / hits[-1], thresholds[keep])
    return found


def pr_curve(y: Array, outputs: Outputs) -> dict[str, Curve]:
    """Per scored class ``{"x": recall, "y": precision, "threshold"}``, recall rising."""
    found = {}
    for name, hits, alarms, thresholds in _counts(View(y, outputs)):
        if hits[-1]:
            recall, precision = hits[1:] / hits[-1], hits[1:] / (hits[1:] + alarms[1:])
            keep = _thin(recall, precision)
            found[name] = _curve(recall[keep], precision[keep], thresholds[1:][keep])
    return found


def calibration_curve(y: Array, outputs: Outputs) -> dict[str, Curve]:
    """Per scored class and equal-width bin ``{"x": mean stated probability, "y": share observed, "rows"}``."""
    view = View(y, outputs)
    kinds = [len(view.classes) - 1] if view.binary else range(len(view.classes))
    found = {}
    for kind in kinds:
        stated, seen = view.probability[:, kind], view.truth == kind
        bins = np.clip((stated * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
        rows = np.bincount(bins, minlength=CALIBRATION_BINS)
        used = rows > 0
        sums = [np.bincount(bins, weight, CALIBRATION_BINS)[used] / rows[used] for weight in (stated, seen)]
        found[str(view.classes[kind])] = {
            "x": sums[0].tolist(),
            "y": sums[1].tolist(),
            "rows": rows[used].astype(float).tolist(),
        }
    return found


def _counts(view: View) -> list[tuple[str, Floats, Floats, Floats]]:
    """Per scored class: positives and negatives at or above each different score, and the scores, falling."""
    names = view.classes[-1:] if view.binary else view.classes
    kinds = [len(view.classes) - 1] if view.binary else range(len(view.classes))
    found = []
    for name, kind, ranking in zip(names, kinds, view.rankings, strict=True):
        score = view.probability[:, kind]
        levels = np.unique(score)[::-1]
        up, down = _at_or_above(ranking, score, levels)
        hits, alarms = np.concatenate([[0], up]), np.concatenate([[0], down])
        found.append((str(name), hits, alarms, np.concatenate([[1.0], levels])))
    return found


def _at_or_above(ranking: Ranking, score: Floats, levels: Floats) -> tuple[Floats, Floats]:
    up = np.searchsorted(-score[ranking.up], -levels, "right").astype(np.float64)
    down = np.searchsorted(-score[ranking.down], -levels, "right").astype(np.float64)
    return up, down


def _thin(x: Floats, y: Floats) -> Ints:
    """At most ``POINTS`` indices, evenly spread along the curve's length so that steep parts keep their shape."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    places = np.searchsorted(along, np.linspace(0, along[-1], POINTS - 1))
    return np.unique(np.concatenate([places.clip(max=len(x) - 1), [0, len(x) - 1]]))[:POINTS]


def _curve(x: Floats, y: Floats, threshold: Floats) -> Curve:
    return {"x": x.tolist(), "y": y.tolist(), "threshold": threshold.tolist()}
