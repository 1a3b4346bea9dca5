"""Where the files of copied versions are, here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from modelkeep.protocols.mlflow import shapes
from modelkeep.protocols.mlflow.transfer.records import Model, Version
from modelkeep.store import tables
from modelkeep.store.logged_tables import logged_models

_BELOW = re.compile(r"/(?P<owner>[\w\-]+)/artifacts(?P<rest>/.*)?\Z")
_OF_RUN = re.compile(r"runs:/(?P<owner>[\w\-]+)(?P<rest>/.*)?\Z")
_OF_MODEL = re.compile(r"models:/(?P<owner>m-[\w]+)(?P<rest>/.*)?\Z")


class Mine(Struct):
    """A model as it is to be written: without versions that others made here.

    Attributes:
        sources: Of each version, by number: its source here, its logged model, and the run or logged model
            that has its files.
    """

    model: Model
    sources: Mapping[int, tuple[str, str, str]]


def versions(conn: Connection, given: Model, name: str) -> tuple[list[str], Mine]:
    """What is left out or left elsewhere, and what is to be written."""
    number = conn.execute(select(tables.models.c.id).where(tables.models.c.name == name)).scalar()
    known: dict[int, int] = {}
    if number is not None:
        query = select(tables.versions.c.version, tables.versions.c.created_ms)
        rows = conn.execute(query.where(tables.versions.c.model == number))
        known = {row.version: row.created_ms for row in rows}
    left, mine = [], []
    sources: dict[int, tuple[str, str, str]] = {}
    for each in given.versions:
        if known.get(each.version, each.created_ms) != each.created_ms:
            left.append(f"version {name}@{each.version}: another one of this number was made here")
            continue
        mine.append(each)
        sources[each.version] = here = _here(conn, each)
        if not here[0].startswith(("mlflow-artifacts:", "models:")) and here[0]:
            left.append(f"the files of version {name}@{each.version} stay at {here[0][:200]}")
    present = {each.version for each in mine}
    aliases = {alias: version for alias, version in given.aliases.items() if version in present}
    return left, Mine(msgspec.structs.replace(given, versions=mine, aliases=aliases), sources)


def outside(uri: str) -> str:
    """A place that clients reach by themselves; empty for one that only its own server knows."""
    return "" if uri.startswith("mlflow-artifacts:") else uri


def _here(conn: Connection, given: Version) -> tuple[str, str, str]:
    named = ""  # who has the files though it is not here: it may come later
    for uri in (given.location, given.source):
        for pattern in (_OF_RUN, _OF_MODEL, _BELOW):
            found = pattern.search(uri)
            if found is None:
                continue
            rest, owner = found["rest"] or "", found["owner"]
            named = named or owner
            run = conn.execute(select(tables.runs).where(tables.runs.c.run_id == owner)).first()
            if run is not None:
                return shapes.artifact_uri(run) + rest, _model_of(given), owner
            model = conn.execute(select(logged_models).where(logged_models.c.model_id == owner)).first()
            if model is not None:
                return f"{model.artifact_uri}{rest}", owner, owner
    return given.source or given.location, _model_of(given), named


def _model_of(given: Version) -> str:
    found = _OF_MODEL.match(given.source)
    return found["owner"] if found else ""
