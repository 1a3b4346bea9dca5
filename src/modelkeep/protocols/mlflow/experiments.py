"""Operations on experiments."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import datasets, experiments, search

View = Literal["ACTIVE_ONLY", "DELETED_ONLY", "ALL"]
Text = Annotated[str, Meta(max_length=100_000)]


class Pair(Struct, frozen=True):
    """A key and its text."""

    key: str = ""
    value: str = ""


class Create(Struct, frozen=True):
    """createExperiment."""

    name: str
    artifact_location: str = ""
    tags: list[Pair] = []


class ById(Struct, frozen=True):
    """An experiment by number."""

    experiment_id: str


class ByName(Struct, frozen=True):
    """An experiment by name."""

    experiment_name: str


class Update(Struct, frozen=True):
    """updateExperiment."""

    experiment_id: str
    new_name: str


class SetTag(Struct, frozen=True):
    """setExperimentTag."""

    experiment_id: str
    key: str
    value: str = ""


class DeleteTag(Struct, frozen=True):
    """deleteExperimentTag."""

    experiment_id: str
    key: str


class Search(Struct, frozen=True):
    """searchExperiments."""

    max_results: int = 1000
    page_token: Text = ""
    filter: str = ""
    order_by: list[str] = []
    view_type: View = "ACTIVE_ONLY"


class Many(Struct, frozen=True):
    """Several experiments by number."""

    experiment_ids: list[str] = []


_CLIMBS = re.compile(r"\.\.|%2e|%2f|%5c|%25|[\\#?;\x00-\x1f]", re.IGNORECASE)


def location(text: str) -> str:
    """An artifact location a client gave: kept and handed back, never opened here. Raises ``Invalid``."""
    checks.length("artifact_location", text, 2048)
    if _CLIMBS.search(text):
        raise checks.invalid(
            "artifact_location", text, "expected a plain URI without '..', escapes, queries or fragments"
        )
    scheme = text.partition(":")[0].lower() if ":" in text else ""
    if text and (len(scheme) < 2 or scheme in checks.LOCAL):
        raise checks.invalid("artifact_location", text, "expected a URI of a store, not a path on some machine")
    if text.startswith("mlflow-artifacts:") and not text.startswith("mlflow-artifacts:/"):
        raise checks.invalid("artifact_location", text, "expected mlflow-artifacts:/<path>")
    return text


def _name(name: str) -> None:
    if not name:
        raise Invalid("Missing value for required parameter 'name'. Expected a non-empty experiment name.")
    checks.length("name", name, checks.MAX_EXPERIMENT_NAME)


def _tag(key: str, value: str) -> None:
    checks.key(key, "key")
    checks.length("value", value, checks.MAX_EXPERIMENT_TAG)


def _create(asked: Create, now: int) -> Work:
    _name(asked.name)
    where = location(asked.artifact_location)
    for tag in asked.tags:
        _tag(tag.key, tag.value)
    tags = {tag.key: tag.value for tag in asked.tags}
    return lambda conn: {"experiment_id": str(experiments.create(conn, asked.name, now, where, tags))}


def _get(asked: ById, _: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    return lambda conn: {"experiment": shapes.experiment(experiments.get(conn, number))}


def _by_name(asked: ByName, _: int) -> Work:
    return lambda conn: {"experiment": shapes.experiment(experiments.by_name(conn, asked.experiment_name))}


def _update(asked: Update, now: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    _name(asked.new_name)
    return lambda conn: experiments.rename(conn, number, asked.new_name, now)


def _delete(asked: ById, now: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    if number == experiments.DEFAULT:
        raise Invalid("Cannot delete the default experiment 'Default'. This is an internally reserved experiment.")
    return lambda conn: experiments.delete_one(conn, number, now)


def _restore(asked: ById, now: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    return lambda conn: experiments.restore(conn, number, now)


def _set_tag(asked: SetTag, _: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    _tag(asked.key, asked.value)

    def work(conn: Connection) -> dict[str, str]:
        experiments.find_active(conn, number)
        experiments.set_tags(conn, number, {asked.key: asked.value})
        return {}

    return work


def _delete_tag(asked: DeleteTag, _: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)

    def work(conn: Connection) -> dict[str, str]:
        experiments.find_active(conn, number)
        experiments.delete_tag(conn, number, asked.key)
        return {}

    return work


def _search(asked: Search, _: int) -> Work:
    checks.page(asked.max_results, 50_000)

    def work(conn: Connection) -> dict[str, object]:
        rows, token = search.experiments(
            conn, asked.filter, asked.order_by, asked.view_type, asked.max_results, asked.page_token
        )
        found = [shapes.experiment(each) for each in experiments.load(conn, rows)]
        return {"experiments": found, **({"next_page_token": token} if token else {})}

    return work


def _datasets(asked: Many, _: int) -> Work:
    numbers = [checks.experiment_id(text) for text in asked.experiment_ids]
    return lambda conn: {"dataset_summaries": datasets.summaries(conn, numbers)}


OPERATIONS = [
    Operation("POST", "experiments/create", Create, _create, "write"),
    Operation("GET", "experiments/get", ById, _get),
    Operation("GET", "experiments/get-by-name", ByName, _by_name),
    Operation("POST", "experiments/update", Update, _update, "write"),
    Operation("POST", "experiments/delete", ById, _delete, "write"),
    Operation("POST", "experiments/restore", ById, _restore, "write"),
    Operation("POST", "experiments/set-experiment-tag", SetTag, _set_tag, "write"),
    Operation("POST", "experiments/delete-experiment-tag", DeleteTag, _delete_tag, "write"),
    Operation("POST", "experiments/search", Search, _search),
    Operation("GET", "experiments/search", Search, _search),
    Operation("POST", "experiments/search-datasets", Many, _datasets),
]
