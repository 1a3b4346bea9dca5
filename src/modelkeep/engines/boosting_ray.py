"""XGBoost and LightGBM through Ray Train (https://docs.ray.io/en/latest/train/train.html).

Ray Train does not run through a client (``ray://``), so a task on the cluster starts the trainer. Each worker fits
the library's own estimator on its share, within the network that Ray Train sets up between them.
"""

from __future__ import annotations

import tempfile
from typing import Any

from modelkeep.core.errors import Refused
from modelkeep.core.plugins import require
from modelkeep.engines import boosting

_TRAINERS = {"xgboost": "XGBoostTrainer", "lightgbm": "LightGBMTrainer"}


def fit(workers: int, needed: dict[str, float], estimator: Any, matrix: Any, target: Any) -> Any:
    """The fitted estimator, local.

    Args:
        workers: At most so many.
        needed: Resources of each, by Ray's names.
        estimator: Unfitted, of XGBoost or LightGBM.
        matrix: (n, features), dense or sparse.
        target: (n,); for XGBoost's classifier 0 to k - 1.
    """
    ray = require("ray", "ray")
    shares = [ray.put((matrix[rows], target[rows])) for rows in boosting.deal(estimator, target, workers)]
    drive = ray.remote(num_cpus=0, max_retries=0)(_drive)
    made = ray.get(drive.remote(estimator, shares, needed))
    if boosting.library(estimator) == "xgboost":
        return boosting.of_booster(estimator, made)
    return boosting.alone(made, estimator)


def _drive(estimator: Any, shares: list[Any], needed: dict[str, float]) -> Any:
    """Runs on the cluster."""
    name = boosting.library(estimator)
    train = require("ray.train", "ray")
    trainer = getattr(require(f"ray.train.{name}", "ray"), _TRAINERS[name])
    with tempfile.TemporaryDirectory() as folder:  # Ray Train's own notes, which nobody reads
        done = trainer(
            _work,
            train_loop_config={"estimator": estimator, "shares": shares},
            scaling_config=train.ScalingConfig(num_workers=len(shares), resources_per_worker=needed),
            run_config=train.RunConfig(storage_path=folder),
        ).fit()
    if not hasattr(done, "return_value"):
        raise Refused(
            "this version of Ray Train gives no model back", hint='pip install --upgrade "modelkeep[ray]"'
        )
    return done.return_value


def _work(config: dict[str, Any]) -> Any:
    """One worker's share; what the first one returns is the model."""
    ray = require("ray", "ray")
    rank = require("ray.train", "ray").get_context().get_world_rank()
    share = ray.get(config["shares"][rank])
    estimator = config["estimator"]
    network = {}
    if boosting.library(estimator) == "lightgbm":
        network = require("ray.train.lightgbm", "ray").get_network_params()
    made = boosting.fit_share(estimator, share, network)
    return None if rank else boosting.packed(made)
