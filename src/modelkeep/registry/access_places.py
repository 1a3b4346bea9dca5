"""Where things are, for whoever must know before letting somebody at them; and what searches may show.

Runs, logged models and their files are in an experiment, versions in a model. What is not there is nowhere:
whoever asks for it is told so by the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, select

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.registry import artifacts
from modelkeep.registry.artifacts import Owner
from modelkeep.store import tables
from modelkeep.store.logged_tables import logged_models
from modelkeep.store.trace_tables import evaluation_datasets, evaluation_experiments, traces

Where = tuple[str, str]
"""A kind and a name, as ``access_rights.Place`` has them."""

Seen = Callable[[str], frozenset[str] | None]
"""The names of a kind that may be seen; None for all."""

_seeing: ContextVar[Seen | None] = ContextVar("seeing", default=None)


@contextmanager
def seeing(names: Seen) -> Iterator[None]:
    """Searches inside show only these."""
    before = _seeing.set(names)
    try:
        yield
    finally:
        _seeing.reset(before)


def seen(kind: str) -> frozenset[str] | None:
    """The names of a kind that searches may show here; None for all."""
    found = _seeing.get()
    return None if found is None else found(kind)


def of_run(conn: Connection, run_id: str) -> list[Where]:
    """The experiment of a run."""
    return _experiment(conn, tables.runs.c.experiment, tables.runs.c.run_id == run_id)


def of_logged_model(conn: Connection, model_id: str) -> list[Where]:
    """The experiment of a logged model."""
    return _experiment(conn, logged_models.c.experiment, logged_models.c.model_id == model_id)


def of_experiment_name(conn: Connection, name: str) -> list[Where]:
    """The experiment of a name."""
    return _experiment(conn, tables.experiments.c.id, tables.experiments.c.name == name)


def of_model(conn: Connection, name: str) -> list[Where]:
    """A registered model, there or not: its name may be granted before it is made."""
    return [("model", name)]


def of_trace(conn: Connection, trace_ids: list[str]) -> list[Where]:
    """The experiments of traces."""
    named = [trace_id for trace_id in trace_ids if trace_id]
    return _experiment(conn, traces.c.experiment, traces.c.trace_id.in_(named)) if named else []


def of_dataset(conn: Connection, dataset_id: str) -> list[Where] | None:
    """The experiments of an evaluation dataset; None when there is no such dataset."""
    row = conn.execute(
        select(evaluation_datasets.c.id).where(evaluation_datasets.c.dataset_id == dataset_id)
    ).first()
    if row is None:
        return None
    return _experiment(conn, evaluation_experiments.c.experiment, evaluation_experiments.c.dataset == row.id)


def of_owner(conn: Connection, owner: Owner) -> list[Where]:
    """Where files are: the experiment of their run, logged model or trace; of a package, any model that has it."""
    if owner.kind == "package":
        versions, models = tables.versions, tables.models
        holders = select(models.c.name).join(versions, versions.c.model == models.c.id)
        found = conn.execute(holders.where(artifacts.has_package(owner.digest))).scalars()
        return [("model", name) for name in found]
    table = {"run": tables.runs, "trace": traces, "model": logged_models}[owner.kind]
    return _experiment(conn, table.c.experiment, table.c.id == owner.number)


def of_source(conn: Connection, source: str) -> list[Where]:
    """What a version's source would hand out: a run's, logged model's or version's files kept here.

    Sources elsewhere are nowhere here: this server never opens them.
    """
    scheme, _, rest = source.partition(":/")
    rest = rest.strip("/")
    if scheme == "runs":
        return of_run(conn, rest.partition("/")[0])
    if scheme == "models":
        name = rest.partition("/")[0].partition("@")[0]
        return of_logged_model(conn, name) if "/" not in rest and "@" not in rest else [("model", name)]
    if scheme == "mlflow-artifacts":
        try:
            return of_owner(conn, artifacts.of_uri(conn, f"{artifacts.SCHEME}{rest}")[0])
        except (Invalid, NotFound, Refused):
            return []
    return []


def _experiment(conn: Connection, column: Any, condition: Any) -> list[Where]:
    found = conn.execute(select(column).where(condition).distinct()).scalars()
    return [("experiment", str(number)) for number in found]
