"""Datasets that went into runs, and logged models that went in or came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from sqlalchemy import Connection, select

from modelkeep.registry import holds, tracking
from modelkeep.store import tables
from modelkeep.store.bulk import Query, decode, encode, insert_rows, select_in, selecting
from modelkeep.store.logged_tables import datasets, run_datasets, run_models

CONTEXT = "mlflow.data.context"


class Dataset(Struct, frozen=True):
    """A dataset as its logger describes it.

    Attributes:
        digest: Of its content, as the logger computes it.
        source: Where it was read from, JSON.
        schema: Its columns, JSON.
        profile: Its statistics, JSON.
    """

    name: str = ""
    digest: str = ""
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""


class DatasetInput(Struct, frozen=True):
    """A dataset and the tags of its use."""

    dataset: Dataset
    tags: dict[str, str] = field(default_factory=dict)


def log_inputs(conn: Connection, run_id: str, given: Sequence[DatasetInput]) -> None:
    """Attach datasets to a run; a repetition changes nothing. Raises ``NotFound``, ``Conflict``."""
    run = tracking.active(conn, run_id)
    for each in given:
        said = each.dataset
        row = (run.experiment, said.name, said.digest, said.source_type, said.source, said.schema, said.profile)
        columns = ("experiment", "name", "digest", "source_type", "source", "schema", "profile")
        insert_rows(conn, datasets, columns, [row], "ON CONFLICT (experiment, name, digest) DO NOTHING")
        known = select(datasets.c.id).where(
            datasets.c.experiment == run.experiment,
            datasets.c.name == said.name,
            datasets.c.digest == said.digest,
        )
        number = conn.execute(known).scalar_one()
        use = (run.id, number, each.tags.get(CONTEXT, ""), encode(each.tags))
        insert_rows(
            conn,
            run_datasets,
            ("run", "dataset", "context", "tags"),
            [use],
            "ON CONFLICT (run, dataset) DO NOTHING",
        )


def log_models(conn: Connection, run_id: str, kind: str, given: Mapping[str, int]) -> None:
    """Attach logged models to a run as ``input`` or ``output``: step by id. Raises ``NotFound``, ``Conflict``."""
    run = tracking.active(conn, run_id)
    if given and holds.any_at_all(conn):
        query = select(run_models.c.model_id, run_models.c.step)
        kept = conn.execute(query.where(run_models.c.run == run.id, run_models.c.kind == kind))
        steps = {model: str(step) for model, step in given.items()}
        holds.refuse_change(conn, "run", run_id, steps, [(model, str(step)) for model, step in kept])
    rows = [(run.id, kind, model, step) for model, step in given.items()]
    conflict = "ON CONFLICT (run, kind, model_id) DO UPDATE SET step = excluded.step"
    insert_rows(conn, run_models, ("run", "kind", "model_id", "step"), rows, conflict)


def summaries(conn: Connection, experiments: Sequence[int], limit: int = 1000) -> list[dict[str, Any]]:
    """The distinct datasets and contexts of these experiments' active runs."""
    query = (
        select(datasets.c.experiment, datasets.c.name, datasets.c.digest, run_datasets.c.context)
        .join(run_datasets, run_datasets.c.dataset == datasets.c.id)
        .join(tables.runs, tables.runs.c.id == run_datasets.c.run)
        .where(datasets.c.experiment.in_(experiments), tables.runs.c.lifecycle_stage == "active")
        .distinct()
        .order_by(datasets.c.name, datasets.c.digest, run_datasets.c.context)
        .limit(limit)
    )
    return [
        {"experiment_id": str(number), "name": name, "digest": digest, **({"context": context} if context else {})}
        for number, name, digest, context in conn.execute(query)
    ]


def asking(conn: Connection, runs: Sequence[int]) -> list[Query]:
    """The two queries that ``Related`` needs the rows of."""
    models = selecting(conn, "run, kind, model_id, step", run_models, "run", runs)
    return [models, selecting(conn, "run, dataset, tags", run_datasets, "run", runs)]


class Related:
    """What is attached to a page of runs.

    Args:
        used: Rows of logged models, as ``asking`` asks for them.
        uses: Rows of datasets, as ``asking`` asks for them.

    Attributes:
        datasets: MLflow's ``DatasetInput`` objects by run's row number.
        models: (model id, step) by run's row number and kind.
    """

    def __init__(self, conn: Connection, used: Iterable[tuple[Any, ...]], uses: Sequence[tuple[Any, ...]]) -> None:
        self.datasets: dict[int, list[dict[str, Any]]] = {}
        self.models: dict[tuple[int, str], list[tuple[str, int]]] = {}
        for run, kind, model, step in used:
            self.models.setdefault((run, kind), []).append((model, step))
        columns = "id, name, digest, source_type, source, schema, profile"
        known = {
            row[0]: row[1:]
            for row in select_in(conn, columns, datasets, "id", {dataset for _, dataset, _ in uses})
        }
        names = columns.split(", ")[1:]
        for run, dataset, tags in uses:
            said = {name: value for name, value in zip(names, known[dataset], strict=True) if value}
            use = {"dataset": said, "tags": [{"key": key, "value": value} for key, value in decode(tags).items()]}
            self.datasets.setdefault(run, []).append(use)
