"""XGBoost and LightGBM in one barrier stage of Spark, whose tasks run all at once and are repeated all together.

The tasks of the stage tell each other where they are, and the libraries' own networks add up the histograms
between them: XGBoost's ``collective`` with a tracker in the first task, as in ``xgboost.spark``, and LightGBM's
sockets, as in SynapseML. The estimators of ``xgboost.spark`` take neither sparse rows with missing values nor
``n_jobs``.

https://xgboost.readthedocs.io/en/stable/python/python_api.html#module-xgboost.collective
https://lightgbm.readthedocs.io/en/stable/Parameters.html#network-parameters
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from modelkeep.core.plugins import require
from modelkeep.engines import boosting, tasks
from modelkeep.engines.spark_heard import Heard


def fit(context: Any, group: str, workers: int, estimator: Any, matrix: Any, target: Any) -> Any:
    """The fitted estimator, local.

    Args:
        context: Spark's.
        group: Of jobs, by which the stage can be cancelled.
        workers: At most so many, and no more than tasks can run at once.
        estimator: Unfitted, of XGBoost or LightGBM.
        matrix: (n, features), dense or sparse.
        target: (n,); for XGBoost's classifier 0 to k - 1.

    Raises:
        Exception: Whatever the library's fit raised, with the worker's traceback as its cause; or what Spark
            raises when tasks are lost.
    """
    failures: list[bytes] = []

    def hear(failure: bytes) -> None:
        failures.append(failure)
        # the others may wait for this one; and Spark would run the stage three times more
        threading.Thread(target=context.cancelJobGroup, args=(group,), daemon=True).start()

    # broadcast, for what travels with a task may have 128 MB (spark.rpc.message.maxSize)
    shares = [
        context.broadcast((matrix[rows], target[rows])) for rows in boosting.deal(estimator, target, workers)
    ]
    context.setJobGroup(group, "modelkeep: trees", interruptOnCancel=True)
    stage = context.parallelize(range(len(shares)), len(shares)).barrier()
    heard = context.accumulator([], Heard(hear))
    try:
        [made] = stage.mapPartitions(partial(_work, estimator, shares, heard)).collect()
    except Exception:
        if failures:
            tasks.opened(tasks.Answer(False, failures[0], 0.0))
        raise
    finally:
        for share in shares:
            share.destroy()
    if boosting.library(estimator) == "xgboost":
        return boosting.of_booster(estimator, made)
    return boosting.alone(made, estimator)


def _work(estimator: Any, shares: list[Any], heard: Any, _: Iterator[int]) -> Iterator[Any]:
    """One task's share; what the first one gives is the model. A task that fails says so and ends well."""
    task = require("pyspark", "spark").BarrierTaskContext.get()
    rank = task.partitionId()
    share = shares[rank].value
    together = _xgboost if boosting.library(estimator) == "xgboost" else _lightgbm
    try:
        with _quiet():
            made = together(task, rank, estimator, share)
    except Exception as error:
        heard.add([(tasks.failure(error),)])
        return
    task.barrier()  # the tracker is in the first
    if rank == 0:
        yield boosting.packed(made)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the standard output, where both say who listens, and which Spark passes on when it is local."""
    kept = os.dup(1)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _xgboost(task: Any, rank: int, estimator: Any, share: Any) -> Any:
    where = {}
    if rank == 0:
        tracker_of = require("xgboost.tracker", "xgboost").RabitTracker
        tracker = tracker_of(n_workers=len(task.getTaskInfos()), host_ip=_ip(task, rank), sortby="task")
        tracker.start()
        threading.Thread(target=tracker.wait_for, name="tracker", daemon=True).start()
        where = tracker.worker_args()
    where = json.loads(task.allGather(json.dumps(where))[0])
    collective = require("xgboost.collective", "xgboost")
    with collective.CommunicatorContext(**where, dmlc_task_id=str(rank)):
        return boosting.fit_share(estimator, share)


def _lightgbm(task: Any, rank: int, estimator: Any, share: Any) -> Any:
    with socket.socket() as held:  # until all have found theirs
        held.bind(("", 0))
        port = held.getsockname()[1]
        machines = task.allGather(f"{_ip(task, rank)}:{port}")
    network = {"num_machines": len(machines), "local_listen_port": port, "machines": ",".join(machines)}
    if estimator.n_jobs is None:  # which LightGBM takes for all cores of the machine
        network["n_jobs"] = task.cpus()
    return boosting.fit_share(estimator, share, network)


def _ip(task: Any, rank: int) -> str:
    """Where the executor of a task is, as an address of IPv4."""
    host = task.getTaskInfos()[rank].address.rpartition(":")[0]
    return socket.gethostbyname(host)
