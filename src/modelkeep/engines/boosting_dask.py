"""XGBoost and LightGBM through their own modules for Dask.

https://xgboost.readthedocs.io/en/stable/tutorials/dask.html
https://lightgbm.readthedocs.io/en/stable/Parallel-Learning-Guide.html#dask
"""

from __future__ import annotations

from typing import Any

from modelkeep.core.plugins import require
from modelkeep.engines import boosting


def fit(client: Any, address: str, workers: list[str], estimator: Any, matrix: Any, target: Any) -> Any:
    """The fitted estimator, local.

    Args:
        client: Of ``distributed``.
        address: For messages.
        workers: By Dask's own addresses; each gets a share of the rows.
        estimator: Unfitted, of XGBoost or LightGBM.
        matrix: (n, features), dense or sparse.
        target: (n,); for XGBoost's classifier 0 to k - 1.
    """
    name = boosting.library(estimator)
    for worker, told in client.run(boosting.installed, name, workers=workers).items():
        boosting.must_have(name, told, f"{address}: the worker {worker}")
    shares = boosting.deal(estimator, target, len(workers))
    rows, labels = [], []
    for worker, share in zip(workers, shares, strict=False):
        rows.append(_block(client, worker, matrix[share]))
        labels.append(_block(client, worker, target[share]))
    array = require("dask.array", "dask")
    X, y = array.concatenate(rows), array.concatenate(labels)
    module = require(f"{name}.dask", name)
    kind = getattr(module, f"Dask{type(estimator).__name__}")
    with client.as_current():  # both look for it, though they can be told
        if name == "xgboost":
            made = kind(**estimator.get_params()).fit(X, y)
            return boosting.of_booster(estimator, made.get_booster().save_raw())
        made = kind(**{"tree_learner": "data", **estimator.get_params()})
        boosting.hush()
        return boosting.alone(made.fit(X, y).to_local(), estimator)


def _block(client: Any, worker: str, block: Any) -> Any:
    """An array of one block that lies at a worker."""
    [held] = client.scatter([block], workers=[worker], hash=False)
    array = require("dask.array", "dask")
    return array.from_delayed(held, block.shape, meta=block[:0])
