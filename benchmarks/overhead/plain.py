"""The flights model as a competent user writes it with pandas and scikit-learn, in one file.

    python benchmarks/overhead/plain.py DATA_FOLDER OUTPUT_FOLDER

It does what the declaration of examples/flights says: reads the months, drops duplicates and rows without a
target, splits by time, imputes and encodes, fits, evaluates (metrics, a bootstrap interval of the
main one, the main one per airport, confusion matrix, curves, calibration), times single predictions, and saves
model and report.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest"]
NOT_INPUTS = ["flight_id", "scheduled_at", "late"]
REPLICATES = 200


def read(folder: Path) -> pd.DataFrame:
    table = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
    return table.drop_duplicates("flight_id").dropna(subset=["late"])


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = table.sort_values("scheduled_at", kind="stable", ignore_index=True)
    kept = round(0.8 * len(table))
    return table.iloc[:kept], table.iloc[kept:]


def model(numbers: list[str]) -> Pipeline:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((SimpleImputer(strategy="median"), numbers), (encoder, CATEGORIES))
    boosting = HistGradientBoostingClassifier(learning_rate=0.1, max_iter=150, max_leaf_nodes=31, random_state=0)
    return make_pipeline(columns, boosting)


def evaluate(y: np.ndarray, p: np.ndarray, origin: np.ndarray) -> dict[str, object]:
    label = (p >= 0.5).astype(int)
    random = np.random.default_rng(0)
    scores = []
    for _ in range(REPLICATES):
        rows = random.integers(0, len(y), len(y))
        scores.append(metrics.roc_auc_score(y[rows], p[rows]))
    report: dict[str, object] = {
        "roc_auc": metrics.roc_auc_score(y, p),
        "roc_auc_interval": np.quantile(scores, [0.025, 0.975]).tolist(),
        "pr_auc": metrics.average_precision_score(y, p),
        "log_loss": metrics.log_loss(y, p),
        "brier": metrics.brier_score_loss(y, p),
        "accuracy": metrics.accuracy_score(y, label),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, label),
        "precision": metrics.precision_score(y, label),
        "recall": metrics.recall_score(y, label),
        "f1": metrics.f1_score(y, label),
        "mcc": metrics.matthews_corrcoef(y, label),
        "confusion": metrics.confusion_matrix(y, label).tolist(),
        "slices": {at: metrics.roc_auc_score(y[origin == at], p[origin == at]) for at in np.unique(origin)},
    }
    false, true, _ = metrics.roc_curve(y, p)
    precision, recall, _ = metrics.precision_recall_curve(y, p)
    observed, predicted = calibration_curve(y, p, n_bins=10)
    thin = np.linspace(0, 1, 101)
    report["curves"] = {
        "roc": np.interp(thin, false, true).tolist(),
        "pr": np.interp(thin, recall[::-1], precision[::-1]).tolist(),
        "calibration": [observed.tolist(), predicted.tolist()],
    }
    return report


def single_latency(fitted: Pipeline, rows: pd.DataFrame) -> float:
    """The 99th percentile of 100 single predictions, in milliseconds."""
    taken = []
    for index in range(100):
        start = time.perf_counter()
        fitted.predict_proba(rows.iloc[index : index + 1])
        taken.append(time.perf_counter() - start)
    return float(np.quantile(taken, 0.99) * 1000)


def main() -> None:
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    table = read(data)
    train, test = split(table)
    inputs = [name for name in table.columns if name not in NOT_INPUTS]
    fitted = model([name for name in inputs if name not in CATEGORIES])
    fitted.fit(train[inputs], train["late"])
    probability = fitted.predict_proba(test[inputs])[:, 1]
    report = evaluate(test["late"].to_numpy(), probability, test["origin"].to_numpy())
    report["latency_ms_p99"] = single_latency(fitted, test[inputs])
    report["rows"] = len(table)
    joblib.dump(fitted, output / "model.joblib")
    (output / "report.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
