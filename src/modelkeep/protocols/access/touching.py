"""What a request touches: the experiments and models behind the things it names, for the rules of ``operations``.

What is not there touches nothing: the operation itself will say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import access_places as places
from modelkeep.registry.access_places import Where
from modelkeep.registry.access_rights import ALL, EVERYTHING

APPROVAL = "modelkeep.approval"
"""Tags of versions that begin so need the right to approve, and writers cannot set them."""

MOST = 1000
"""Things one request may name."""


def number(text: str) -> str:
    """An experiment's number as grants have it; empty for what the operation will refuse."""
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) <= 18 else ""


def experiment(_: Connection, asked: Any) -> Iterable[Where]:
    return [("experiment", number(asked.experiment_id))]


def experiment_name(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_experiment_name(conn, asked.experiment_name)


def new_experiment(_: Connection, asked: Any) -> Iterable[Where]:
    return [("experiment", ALL)]


def run(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_run(conn, asked.run_id or getattr(asked, "run_uuid", ""))


def runs(conn: Connection, asked: Any) -> Iterable[Where]:
    named = _few([*asked.run_ids, *asked.run_id], "run_ids")
    return [where for run_id in named for where in places.of_run(conn, run_id)]


def source_run(conn: Connection, asked: Any) -> Iterable[Where]:
    named = getattr(asked, "source_run_id", "") or getattr(asked, "run_id", "")
    return places.of_run(conn, named) if named else []


def model(_: Connection, asked: Any) -> Iterable[Where]:
    return [("model", asked.name)]


def new_name(_: Connection, asked: Any) -> Iterable[Where]:
    return [("model", asked.new_name)]


def source(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_source(conn, asked.source)


def logged(conn: Connection, asked: Any) -> Iterable[Where]:
    named = asked.model_id
    return places.of_logged_model(conn, named) if named else []


def logged_of_metrics(conn: Connection, asked: Any) -> Iterable[Where]:
    named = dict.fromkeys(metric.model_id for metric in asked.metrics if metric.model_id)
    return [where for model_id in named for where in places.of_logged_model(conn, model_id)]


def logged_of_models(conn: Connection, asked: Any) -> Iterable[Where]:
    named = dict.fromkeys(use.model_id for use in asked.models)
    return [where for model_id in named for where in places.of_logged_model(conn, model_id)]


def approval(_: Connection, asked: Any) -> Iterable[Where]:
    """The model, when the tag says that a version is approved."""
    keys = [asked.key] if hasattr(asked, "key") else [tag.key for tag in asked.tags]
    return [("model", asked.name)] if any(key.startswith(APPROVAL) for key in keys) else []


def unless_approval(conn: Connection, asked: Any) -> Iterable[Where]:
    return [] if approval(conn, asked) else model(conn, asked)


def trace(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_trace(conn, [getattr(asked, "trace_id", "") or getattr(asked, "request_id", "")])


def traces(conn: Connection, asked: Any) -> Iterable[Where]:
    named = [*getattr(asked, "trace_ids", ()), *getattr(asked, "request_ids", ())]
    return places.of_trace(conn, _few(named, "trace_ids"))


def new_trace(conn: Connection, asked: Any) -> Iterable[Where]:
    """The experiment it goes to, and the one it is in already."""
    if asked.trace is None:
        return experiment(conn, asked)
    info = asked.trace.trace_info
    told = info.trace_location.mlflow_experiment
    where = [("experiment", number(told.experiment_id))] if told else []
    return [*where, *places.of_trace(conn, [info.trace_id])]


def dataset(conn: Connection, asked: Any) -> Iterable[Where]:
    """Its experiments; everything for one that is in none."""
    found = places.of_dataset(conn, asked.dataset_id)
    return [(EVERYTHING, ALL)] if found == [] else found or []


def experiments(_: Connection, asked: Any) -> Iterable[Where]:
    """Those that are named; everything if none are."""
    named = _few(asked.experiment_ids, "experiment_ids")
    return [("experiment", number(text)) for text in named] or [(EVERYTHING, ALL)]


def _few(named: Iterable[str], path: str) -> list[str]:
    found = list(dict.fromkeys(named))
    if len(found) > MOST:
        raise Invalid(f"holds {len(found)}; expected at most {MOST}", path=path)
    return found
