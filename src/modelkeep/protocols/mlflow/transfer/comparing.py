"""Whether experiments, registered models, logged models and traces are here as they were there.

What was added here is no fault; what is lost or differs is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, structs
from sqlalchemy import Connection

from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.traces import SYSTEM_TAGS
from modelkeep.protocols.mlflow.transfer import departing, sources_here
from modelkeep.protocols.mlflow.transfer.records import Experiment, LoggedModel, Model, Trace, Version, some
from modelkeep.protocols.mlflow.transfer.traced import hexadecimal
from modelkeep.registry import traces, traces_spans
from modelkeep.store.bulk import select_in
from modelkeep.store.trace_tables import trace_links

PAGE = 100
_EXPERIMENT = ("lifecycle_stage", "created_ms", "updated_ms")
_VERSION = (
    *("created_ms", "updated_ms", "run_id", "run_link", "description", "user_id", "stage", "status"),
    "status_message",
)
_LOGGED = (
    *("name", "status", "lifecycle_stage", "created_ms", "updated_ms", "model_type", "source_run_id"),
    "status_message",
)
_TRACE = ("start_ms", "duration_ms", "status", "client_request_id")


class Copied(Struct):
    """What was copied, as it was there.

    Attributes:
        experiments: Each with its number and name here.
        models: Each with its name here.
        traces: The chosen ones, as ``shortened`` gives them.
    """

    experiments: list[tuple[Experiment, int, str]] = []
    models: list[tuple[Model, str]] = []
    traces: list[Trace] = []


def shortened(given: Trace, *, whole: bool) -> Trace:
    """A trace with no more of its spans than their ids; without those and its assessments unless all came here."""
    if not whole:
        return structs.replace(given, spans=[], assessments=[])
    return structs.replace(given, spans=[{"span_id": _span_id(each)} for each in given.spans])


def _span_id(span: Mapping[str, Any]) -> str:
    old = span.get("context")
    return hexadecimal(old.get("span_id") if isinstance(old, Mapping) else span.get("span_id"))


def experiments(keep: Keep, given: Sequence[tuple[Experiment, int, str]]) -> Iterator[list[str]]:
    """The faults of each."""
    with keep.db.read() as conn:
        here = {each.id: each for each in departing.all_experiments(conn)}
    for each, number, name in given:
        who = f"experiment {number} {name!r}"
        mine = here.get(number)
        if mine is None:
            yield [f"{who}: is not here"]
            continue
        renamed = [] if mine.name == name else [f"{who}: name is {mine.name!r} here"]
        yield [*renamed, *_fields(who, each, mine, _EXPERIMENT), *_pairs(who, "tag", each.tags, mine.tags)]


def models(keep: Keep, given: Sequence[tuple[Model, str]]) -> Iterator[tuple[int, list[str]]]:
    """How many versions each has, and its faults; versions that others made here are not compared."""
    for each, name in given:
        who = f"model {name!r}"
        with keep.db.read() as conn:
            here = departing.registered_model(conn, name)
            if here is None:
                yield 0, [f"{who}: is not here"]
                continue
            wanted = sources_here.versions(conn, each, name)[1]
        faults = [*_fields(who, each, here, ("description",)), *_pairs(who, "tag", each.tags, here.tags)]
        aliases = {alias: str(version) for alias, version in wanted.model.aliases.items()}
        faults += _pairs(who, "alias", aliases, {alias: str(version) for alias, version in here.aliases.items()})
        kept = {version.version: version for version in here.versions}
        for version in wanted.model.versions:
            faults += _version(name, version, kept.get(version.version), wanted.sources[version.version][0])
        yield len(wanted.model.versions), faults


def _version(name: str, there: Version, here: Version | None, source: str) -> list[str]:
    who = f"version {name}@{there.version}"
    if here is None:
        return [f"{who}: is not here"]
    moved = [] if here.source == source else [f"{who}: source is {here.source!r} here, expected {source!r}"]
    return [*_fields(who, there, here, _VERSION), *moved, *_pairs(who, "tag", there.tags, here.tags)]


def logged_models(keep: Keep, given: Iterable[LoggedModel]) -> Iterator[list[str]]:
    """The faults of each."""
    for page in some(given, PAGE):
        with keep.db.read() as conn:
            here = departing.logged_models_of(conn, [each.model_id for each in page])
        for each in page:
            who = f"logged model {each.model_id}"
            mine = here.get(each.model_id)
            if mine is None:
                yield [f"{who}: is not here"]
                continue
            faults = _fields(who, each, mine, _LOGGED)
            faults += _pairs(who, "param", each.params, mine.params) + _pairs(who, "tag", each.tags, mine.tags)
            lost = sorted({point[0] for point in set(each.metrics) - set(mine.metrics)})
            yield [*faults, *(f"{who}: points of metric {key!r} are not here" for key in lost)]


def chosen_traces(keep: Keep, given: Iterable[Trace]) -> Iterator[list[str]]:
    """The faults of each."""
    for page in some(given, PAGE):
        with keep.db.read() as conn:
            here = _Traces(conn, page)
        for each in page:
            yield here.faults(each)


class _Traces:
    """What is here of some traces."""

    def __init__(self, conn: Connection, given: Sequence[Trace]) -> None:
        rows = traces.find_many(conn, [each.trace_id for each in given])
        numbers = [row.id for row in rows]
        self._rows = {row.trace_id: row for row in rows}
        self._held = traces.Contents(conn, rows)
        self._spans = {(number, span) for number, span in traces_spans.ids(conn, numbers)}
        listed = select_in(conn, "trace, target, kind", trace_links, "trace", numbers)
        self._links = {(number, target) for number, target, kind in listed if kind == "run"}

    def faults(self, there: Trace) -> list[str]:
        who = f"trace {there.trace_id}"
        row = self._rows.get(there.trace_id)
        if row is None:
            return [f"{who}: is not here"]
        faults = _fields(who, there, row, _TRACE)
        said = {name: getattr(there, name) for name in ("request_preview", "response_preview")}
        faults += _fields(who, there, row, [name for name, text in said.items() if text is not None])
        tags = {key: value for key, value in there.tags.items() if key not in SYSTEM_TAGS}
        faults += _pairs(who, "tag", tags, self._held.tags.get(row.id, {}))
        faults += _pairs(who, "metadata", there.metadata, self._held.metadata.get(row.id, {}))
        kept = [json.loads(text) for text, _ in self._held.assessments.get(row.id, ())]
        lost = {str(each["assessment_id"]) for each in there.assessments if each.get("assessment_id")}
        lost -= {str(each.get("assessment_id")) for each in kept}
        faults += [f"{who}: assessment {each} is not here" for each in sorted(lost)]
        spans = {each["span_id"] for each in there.spans}
        gone = sorted(span for span in spans if (row.id, span) not in self._spans)
        faults += [f"{who}: {len(gone)} of {len(spans)} spans are not here, the first {gone[0]}"] if gone else []
        return faults + [
            f"{who}: link to run {r} is not here" for r in there.runs if (row.id, r) not in self._links
        ]


def _fields(who: str, there: Any, here: Any, names: Iterable[str]) -> list[str]:
    pairs = ((name, getattr(there, name), getattr(here, name)) for name in names)
    return [f"{who}: {name} is {_short(now)} here, {_short(was)} there" for name, was, now in pairs if was != now]


def _pairs(who: str, what: str, there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"{who}: {what} {key!r} is {_short(here[key])} here, {_short(value)} there"
        if key in here
        else f"{who}: {what} {key!r} is not here"
        for key, value in there.items()
        if here.get(key) != value
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
