"""What the types of everything but ``data`` and ``features`` cannot say."""

from __future__ import annotations

import math
import re
from typing import Any

from modelkeep.spec.check_data import check_import_path
from modelkeep.spec.declaration import Declaration, Range, Replicas, Train, Tune
from modelkeep.spec.engines import address, size
from modelkeep.spec.expressions import parse_condition, parse_gate, parse_rollout, parse_trigger
from modelkeep.spec.names import (
    ALGORITHM_TASKS,
    ALGORITHMS,
    CLASSIFICATION_METRICS,
    METRICS,
    REGRESSION_METRICS,
    unknown,
)
from modelkeep.spec.nodes import child
from modelkeep.spec.report import Report
from modelkeep.spec.units import rate, seconds

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_INF = float("inf")


def check_model(declaration: Declaration, report: Report) -> None:
    """Names, training, gates, deployment, monitoring, renewal, engine."""
    _name("model", declaration.model, report)
    if declaration.deploy.endpoint:
        _name("deploy.endpoint", declaration.deploy.endpoint, report)
    _train(declaration, report)
    _gates(declaration, report)
    _deploy(declaration, report)
    _monitor(declaration, report)
    report.parse_all("update.when", parse_trigger, declaration.update.when)
    report.unique("update.when", declaration.update.when)
    report.parse("update.cooldown", seconds, declaration.update.cooldown)
    report.between("update.priority", declaration.update.priority, -1000, 1000)
    report.parse("engine", address, declaration.engine)
    _resources(declaration, report)


def _resources(declaration: Declaration, report: Report) -> None:
    needed = declaration.resources
    report.between("resources.cpu", needed.cpu, 0, 1024, open_ends=True)
    if needed.cpu > 1 and needed.cpu != int(needed.cpu):
        report.add("resources.cpu", f"{needed.cpu:g} is neither a whole number of cores nor less than one")
    report.parse("resources.memory", size, needed.memory or None)
    report.between("resources.gpu", needed.gpu, 0, 1024)
    if needed.gpu > 1 and needed.gpu != int(needed.gpu):
        report.add("resources.gpu", f"{needed.gpu:g} is neither a whole number of GPUs nor less than one")


def _name(path: str, name: str, report: Report) -> None:
    if not _NAME.fullmatch(name):
        said = repr(name if len(name) <= 60 else name[:57] + "...")
        report.add(
            path,
            f"{said} is not a name; expected at most 100 letters, digits, '.', '_', '-', the first no sign",
        )


def _tasks(train: Train) -> frozenset[str]:
    """The tasks the training can be for, as far as the declaration tells; empty when it does not."""
    if train.task != "auto":
        return frozenset({train.task})
    return ALGORITHM_TASKS.get(train.algorithm, frozenset())


def _train(declaration: Declaration, report: Report) -> None:
    train = declaration.train
    _algorithm("train.algorithm", train.algorithm, report)
    possible = ALGORITHM_TASKS.get(train.algorithm)
    if possible is not None and train.task != "auto" and train.task not in possible:
        able = " or ".join(sorted(possible))
        report.add("train.task", f"{train.task!r} is not what {train.algorithm} does; it is for {able}")
    if not declaration.data.target and _tasks(train) != {"anomaly"}:
        report.add("data.target", "missing; expected the column to predict (only anomaly detection needs none)")
    if train.metric:
        _metric("train.metric", train.metric, train, report)
    report.between("train.seed", train.seed, 0, 2**32 - 1)
    report.parse("train.time_budget", seconds, train.time_budget)
    if train.families and train.algorithm != "auto":
        report.add(
            "train.families", f"only algorithm 'auto' chooses among families, here it is {train.algorithm!r}"
        )
    report.unique("train.families", train.families)
    for index, family in enumerate(train.families):
        path = child("train.families", index)
        if family == "auto":
            report.add(path, "'auto' cannot be one of its own families")
        else:
            _algorithm(path, family, report)
    if train.tune is not None:
        _tune(train.tune, train, report)


def _algorithm(path: str, name: str, report: Report) -> None:
    if name in ALGORITHM_TASKS:
        return
    if "." in name or ":" in name:
        check_import_path(path, name, report)
    else:
        said = unknown(name, ALGORITHMS, "an algorithm")
        report.add(path, said if "did you mean" in said else said + ", or an import path 'package.module:name'")


def _metric(path: str, name: str, train: Train, report: Report) -> None:
    if report.known(path, name, METRICS, "a metric"):
        _suits(path, name, train, report)


def _suits(path: str, name: str, train: Train, report: Report) -> None:
    """A metric of another task than the training's can never be computed."""
    tasks = _tasks(train)
    for task, metrics in (("classification", CLASSIFICATION_METRICS), ("regression", REGRESSION_METRICS)):
        if tasks and name in metrics and task not in tasks:
            why = f"task {train.task}" if train.task != "auto" else f"algorithm {train.algorithm}"
            report.add(path, f"{name!r} measures {task}, but {why} is for {' or '.join(sorted(tasks))}")


def _tune(tune: Tune, train: Train, report: Report) -> None:
    report.between("train.tune.trials", tune.trials, 1, _INF)
    report.between("train.tune.folds", tune.folds, 2, 1000)
    report.between("train.tune.parallel", tune.parallel, 1, 1000)
    report.parse("train.tune.timeout", seconds, tune.timeout)
    for name, values in tune.space.items():
        path = child("train.tune.space", name)
        if name in train.params:
            report.add(path, f"{name!r} is fixed by train.params; remove it here or there")
        if isinstance(values, Range):
            _range(path, values, tune.sampler, report)
        elif not values:
            report.add(path, "no choices; expected a list of values or a range {low: ..., high: ...}")
        else:
            _choices(path, values, report)


def _range(path: str, values: Range, sampler: str, report: Report) -> None:
    if not (math.isfinite(values.low) and math.isfinite(values.high)):
        report.add(path, "a range needs finite ends")
    elif not values.low < values.high:
        report.add(path, f"low {values.low:g} is not below high {values.high:g}")
    if values.log and values.low <= 0:
        report.add(child(path, "low"), f"{values.low:g}: a logarithmic range needs low above 0")
    if values.step is not None:
        report.between(child(path, "step"), values.step, 0, _INF, open_ends=True)
        if values.log:
            report.add(child(path, "step"), "a logarithmic range takes no step")
    if values.int:
        for field in ("low", "high", "step"):
            number = getattr(values, field)
            if number is not None and math.isfinite(number) and number != int(number):
                report.add(child(path, field), f"{number:g} is not a whole number, but int is true")
    if sampler == "grid" and values.step is None and not values.int:
        report.add(path, "a grid needs a step, or int: true, or a list of choices")


def _choices(path: str, values: tuple[Any, ...], report: Report) -> None:
    for index, value in enumerate(values):
        if any(value == other and type(value) is type(other) for other in values[:index]):
            report.add(child(path, index), f"{value!r} stands here twice")


def _gates(declaration: Declaration, report: Report) -> None:
    report.unique("gates", declaration.gates)
    for index, gate in enumerate(report.parse_all("gates", parse_gate, declaration.gates)):
        if gate is None:
            continue
        path = child("gates", index)
        _suits(path, gate.metric.name, declaration.train, report)
        if gate.champion is not None and gate.champion.name != gate.metric.name:
            report.add(
                path,
                f"compares {gate.metric.name} with the champion's {gate.champion.name}; expected the same metric",
            )
        if gate.champion is not None and gate.champion.slice not in (None, gate.metric.slice):
            report.add(path, f"compares with the champion's slice({gate.champion.slice}); expected the same slice")


def _deploy(declaration: Declaration, report: Report) -> None:
    deploy = declaration.deploy
    weight = 0.0
    for index, step in enumerate(report.parse_all("deploy.rollout", parse_rollout, deploy.rollout)):
        if step is None:
            continue
        if step.weight < weight:
            message = (
                f"{step.text!r} comes after a step with more traffic; expected shadow first, then rising shares"
            )
            report.add(child("deploy.rollout", index), message)
        weight = step.weight
    report.parse_all("deploy.abort", parse_condition, deploy.abort)
    report.unique("deploy.abort", deploy.abort)
    _replicas(deploy.replicas, report)
    batch = deploy.batch
    report.between("deploy.batch.max_rows", batch.max_rows, 1, 1_000_000)
    wait = report.parse("deploy.batch.wait", seconds, batch.wait)
    budget = report.parse("deploy.batch.budget", seconds, batch.budget)
    if budget is not None and budget <= 0:
        report.add("deploy.batch.budget", f"{batch.budget!r}: nothing is answered within no time")
    elif wait is not None and budget is not None and wait >= budget:
        report.add("deploy.batch.wait", f"{batch.wait!r} uses up the budget of {batch.budget!r}; expected less")
    _in_range(declaration, report)
    report.between("deploy.concurrency", deploy.concurrency, 1, 64)
    report.between("deploy.cache.rows", deploy.cache.rows, 0, 100_000_000)
    report.between("deploy.cache.bytes", deploy.cache.bytes, 0, 1 << 40)
    if deploy.memory < 1 << 26:
        report.add("deploy.memory", f"{deploy.memory} bytes hold no process; expected at least {1 << 26}")


def _in_range(declaration: Declaration, report: Report) -> None:
    names = declaration.deploy.in_range
    if isinstance(names, str):
        if names != "numeric":
            said = f"{names!r} is no group of numbers; expected numeric, or for one input [{names}]"
            report.add("deploy.in_range", said)
        return
    report.unique("deploy.in_range", names)
    for index, name in enumerate(names):
        if name == declaration.data.target or name in declaration.data.exclude:
            what = "the target" if name == declaration.data.target else "excluded by data.exclude"
            report.add(child("deploy.in_range", index), f"{name!r} is {what}; it is no input")


def _replicas(replicas: Replicas, report: Report) -> None:
    report.between("deploy.replicas.min", replicas.min, 0, 10_000)
    if replicas.max < max(replicas.min, 1):
        below = f"max {replicas.max} is below min {replicas.min}"
        report.add("deploy.replicas", below if replicas.max < replicas.min else "max is 0, so nothing would serve")
    quiet = report.parse("deploy.replicas.quiet", seconds, replicas.quiet)
    if quiet is not None and quiet <= 0:
        report.add("deploy.replicas.quiet", f"{replicas.quiet!r}: must last longer than nothing")


def _monitor(declaration: Declaration, report: Report) -> None:
    monitor = declaration.monitor
    window = report.parse("monitor.window", seconds, monitor.window)
    if window is not None and window <= 0:
        report.add("monitor.window", f"{monitor.window!r}: a window must last longer than nothing")
    report.parse("monitor.drift.false_alarms", rate, monitor.drift.false_alarms)
    report.between("monitor.log.sample", monitor.log.sample, 0, 1)
    if monitor.metric:
        _metric("monitor.metric", monitor.metric, declaration.train, report)
    report.between("monitor.min_labels", monitor.min_labels, 1, _INF)
    for path, names in (("monitor.drift.exclude", monitor.drift.exclude), ("monitor.log.mask", monitor.log.mask)):
        report.unique(path, names)
