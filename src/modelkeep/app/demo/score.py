"""Month by month: the model that was kept against the first one, left alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelkeep.stats.metrics import evaluate
from modelkeep.stats.outputs import Outputs


@dataclass(frozen=True, slots=True)
class Month:
    """One month's score.

    Attributes:
        month: As ``2013-02``.
        flights: Rows predicted.
        late: Share of late flights.
        versions: The champions that answered, in order.
        kept: ROC AUC and accuracy of what was served.
        alone: The same of the January model.
    """

    month: str
    flights: int
    late: float
    versions: tuple[int, ...]
    kept: tuple[float, float]
    alone: tuple[float, float]


def score(late: np.ndarray, probability: np.ndarray) -> tuple[float, float]:
    """ROC AUC and accuracy at one half."""
    both = np.column_stack([1.0 - probability, probability])
    outputs = Outputs(label=(probability > 0.5).astype(np.int64), probability=both, classes=np.array([0, 1]))
    return evaluate("roc_auc", late, outputs), evaluate("accuracy", late, outputs)


def year(months: list[Month]) -> dict[str, float]:
    """The year's figures: each month weighted by its flights."""
    weights = np.array([month.flights for month in months], float)

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=weights))

    return {
        "kept_roc_auc": mean([month.kept[0] for month in months]),
        "alone_roc_auc": mean([month.alone[0] for month in months]),
        "kept_accuracy": mean([month.kept[1] for month in months]),
        "alone_accuracy": mean([month.alone[1] for month in months]),
        "months_better": sum(month.kept[0] > month.alone[0] for month in months),
        "months": len(months),
    }
