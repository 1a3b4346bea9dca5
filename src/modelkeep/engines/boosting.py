"""What the data-parallel fits of XGBoost and LightGBM have in common on Ray, Dask and Spark."""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, wait
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import clone, is_classifier

from modelkeep.core.errors import ModelkeepError, Unavailable
from modelkeep.core.plugins import require
from modelkeep.engines import versions
from modelkeep.engines.flow import ATTEMPTS

Array = npt.NDArray[Any]

T = TypeVar("T")

NOTICE = 3.0
"""Seconds in which an engine notices that a worker is gone, after the others failed for it, unless it says."""
LOOK = 0.5
"""Seconds between two looks at who is there."""
FEW = 50
"""Rows, of each class, that are tried in this process when a fit failed."""
_NETWORK = {
    "tree_learner",
    "pre_partition",
    "num_machines",
    "local_listen_port",
    "machines",
    "time_out",
    "num_threads",
}
_MACHINES = (("num_machines", "1"), ("local_listen_port", "12400"), ("machines", ""))


def library(estimator: Any) -> str:
    """``xgboost`` or ``lightgbm``."""
    return type(estimator).__module__.partition(".")[0]


def installed(name: str) -> dict[str, str]:
    """The version of a library in this process, by its name; empty when there is none."""
    try:
        return {name: version(name)}
    except PackageNotFoundError:
        return {name: ""}


def must_have(name: str, there: dict[str, str], where: str) -> None:
    """A worker has the library that this process has. Raises ``Refused`` with both versions."""
    versions.must_agree(installed(name), there, where)


def deal(estimator: Any, target: Array, workers: int) -> list[Array]:
    """Rows for each of at most so many workers, (m,) each and ascending, every class in every share.

    A library that looks for the classes in a share would else take them for fewer than they are.
    """
    rarest = int(np.unique(target, return_counts=True)[1].min()) if is_classifier(estimator) else len(target)
    count = max(1, min(workers, rarest))
    order = np.argsort(target, kind="stable")
    return [np.sort(order[first::count]) for first in range(count)]


def repeated(
    fit: Callable[[list[str]], Any],
    members: Callable[[], Set[str]],
    address: str,
    notice: float = NOTICE,
    free: Callable[[list[str]], object] = lambda _: None,
    own: Callable[[Exception], bool] = lambda _: False,
) -> Any:
    """Fit, and again from the start with those who are left when a worker was lost meanwhile.

    Args:
        fit: With these workers.
        members: Who is there now.
        notice: Seconds in which ``members`` hears that one is gone.
        free: Frees these, which may still wait for one that is gone.
        own: Whether an error is surely the library's own, so that nobody need be waited for.

    Raises:
        Unavailable: Workers were lost ``ATTEMPTS`` times, or there are none.
    """
    failed: Exception | None = None
    for _ in range(ATTEMPTS):
        there = members()
        if not there:
            break
        try:
            return fit(sorted(there))
        except ModelkeepError:
            raise
        except Exception as error:
            if own(error):
                raise
            failed = error
            until = time.monotonic() + notice
            while there <= members():
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            if left := sorted(there & members()):
                free(left)
    raise Unavailable(
        f"{address}: workers were lost while trees were fitted on them, {ATTEMPTS} times or to the last",
        hint="they may be out of memory: use more workers, or ones with more memory",
    ) from failed


def said_here(estimator: Any, matrix: Any, target: Array, error: Exception) -> bool:
    """Whether a fit's error comes of the estimator itself: this process hears the same of a few rows, alone.

    What a lost worker makes the others say is said of a network, which nobody needs here.

    Args:
        estimator: Unfitted; it is not changed.
        matrix: (n, features).
        target: (n,).
        error: Of the fit at the workers.
    """
    kinds = np.unique(target) if is_classifier(estimator) else ()
    rows = np.concatenate(
        [np.flatnonzero(target == kind)[:FEW] for kind in kinds] or [np.arange(len(target))[:FEW]]
    )
    tried = clone(estimator)
    if library(tried) == "lightgbm":
        hush()
    if isinstance(tried.n_estimators, int):
        tried.set_params(n_estimators=min(1, tried.n_estimators))
    try:
        tried.fit(matrix[rows], target[rows])
    except Exception as here:
        said = _words(str(here).strip().partition("\n")[0])
        return len(said.split()) > 2 and said in _words("".join(traceback.format_exception(error)))
    return False


def _words(text: str) -> str:
    """Without times and the like."""
    return re.sub(r"[^A-Za-z]+", " ", text).strip()


class Gone(Exception):
    """A worker is gone, and the others wait for it."""


def unless_lost(fit: Callable[[], T], lost: Callable[[], bool], notice: float = NOTICE) -> T:
    """What ``fit`` gives, unless a worker is lost meanwhile and the others do not notice.

    LightGBM's workers wait for ever for what a lost one would have sent, XGBoost's while they begin.

    Args:
        fit: Goes on in a thread of its own when it is given up.
        lost: Whether a worker is gone.
        notice: Seconds in which ``fit`` may end by itself after that.

    Raises:
        Gone: It did not.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(fit())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="boosted-fit", daemon=True).start()
    since = 0.0
    while not wait([answer], timeout=LOOK).done:
        since = since or (time.monotonic() if lost() else 0.0)
        if since and time.monotonic() - since > notice:
            raise Gone
    return answer.result()


def fit_share(estimator: Any, share: tuple[Any, Any], network: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The estimator, fitted at a worker together with the others, whose library finds them.

    Args:
        estimator: Unfitted; it is not changed.
        share: This worker's matrix (m, features) and target (m,).
        network: By which LightGBM finds the others, in its own parameters.
    """
    own = clone(estimator)
    if library(own) == "lightgbm":
        hush()
        own.set_params(**{"tree_learner": "data", "pre_partition": True, **own.get_params(), **network})
    own.fit(*share)
    return own


def packed(model: Any) -> Any:
    """What ``of_booster`` or ``alone`` takes of an estimator that was fitted at a worker."""
    return bytes(model.get_booster().save_raw()) if library(model) == "xgboost" else model


def of_booster(estimator: Any, raw: bytes | bytearray) -> Any:
    """XGBoost's estimator as if fitted here.

    Args:
        estimator: Unfitted; it is not changed.
        raw: From ``Booster.save_raw``.
    """
    own = clone(estimator)
    own.load_model(bytearray(raw))
    for name, value in estimator.get_params().items():
        if name != "objective":  # which a fit sets too
            setattr(own, name, value)
    return own


def hush() -> None:
    """LightGBM's Python module says only errors, and not on the standard output."""
    logger = logging.getLogger("lightgbm")
    logger.setLevel(logging.ERROR)
    require("lightgbm", "lightgbm").register_logger(logger)


def alone(model: Any, estimator: Any) -> Any:
    """LightGBM's fitted estimator without what was set on the unfitted one to find other machines."""
    for name in _NETWORK - {*estimator.get_params()}:
        model._other_params.pop(name, None)
        model.__dict__.pop(name, None)
    model.n_jobs = estimator.n_jobs
    text = model.booster_.model_to_string()
    for name, value in _MACHINES:
        text = re.sub(rf"(?m)^\[{name}: .*\]$", f"[{name}: {value}]", text)
    model._Booster = require("lightgbm", "lightgbm").Booster(model_str=text)
    return model
