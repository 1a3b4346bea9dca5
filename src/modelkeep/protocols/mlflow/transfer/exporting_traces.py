"""Traces with their spans and assessments, made on an MLflow server.

A server takes a trace under the id it has, so ids stay. Spans travel as OTLP in JSON, which tells the trace they
belong to by an id of OpenTelemetry's; where the trace's own is none, they stay here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from sqlalchemy import select

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow import traces_shapes
from modelkeep.protocols.mlflow.traces import SYSTEM_TAGS
from modelkeep.protocols.mlflow.transfer import posting
from modelkeep.protocols.mlflow.transfer.posting import Poster
from modelkeep.protocols.mlflow.transfer.records import fingerprint
from modelkeep.protocols.mlflow.transfer.rest import NEWER
from modelkeep.protocols.mlflow.transfer.server import ServerSource
from modelkeep.protocols.mlflow.transfer.traced import hexadecimal
from modelkeep.registry import traces_spans
from modelkeep.registry.artifacts import LOCATION
from modelkeep.store.bulk import select_in
from modelkeep.store.trace_tables import trace_artifacts, trace_links, traces

PAGE = 100
SAMPLE = 50
_NAMED = re.compile(r"tr-([0-9a-f]{32})\Z")
_REFUSED = (NotFound, Invalid, Conflict)  # of one trace; a server that is away or refuses all ends the export
_RUN, _MODEL = "mlflow.sourceRun", "mlflow.modelId"


class _Trace(Struct, frozen=True):
    """``TraceInfoV3``, spans as OTLP's in JSON, the runs it is linked to, and files attached to it."""

    info: dict[str, Any]
    spans: list[dict[str, Any]]
    runs: list[str]
    files: list[tuple[str, str, int]]


class Traces:
    """The traces of a home on their way to a server.

    Args:
        source: Reads from that server.
        report: Counts and what is left are told to it (``exporting.Report``).
        runs, models: Ids there by ids here.
    """

    def __init__(
        self,
        keep: Keep,
        poster: Poster,
        source: ServerSource,
        report: Any,
        runs: Mapping[str, str],
        models: Mapping[str, str],
    ) -> None:
        self._keep, self._source, self._report = keep, source, report
        self._poster, self._client = poster, poster.client
        self._runs, self._models = runs, models
        self._compared = 0

    def send(self, places: Mapping[int, str]) -> None:
        """Make all traces; ids of experiments there by numbers here."""
        for number, there in places.items():
            known: dict[str, dict[str, str]] | None = None
            last = 0
            while True:
                last, page = self._page(number, last)
                if not page:
                    break
                known = self._source.trace_tags(int(there)) if known is None else known
                for each in page:
                    self._trace(each, there, known.get(each.info["trace_id"], {}))

    def _page(self, experiment: int, after: int) -> tuple[int, list[_Trace]]:
        with self._keep.db.read() as conn:
            query = select(traces).where(traces.c.experiment == experiment, traces.c.id > after)
            rows = list(conn.execute(query.order_by(traces.c.id).limit(PAGE)))
            ids = [row.id for row in rows]
            spans = traces_spans.contents(conn, ids)
            linked: dict[int, list[str]] = {}
            for trace, kind, target in select_in(conn, "trace, kind, target", trace_links, "trace", ids):
                if kind == "run":
                    linked.setdefault(trace, []).append(target)
            files: dict[int, list[tuple[str, str, int]]] = {}
            for trace, *file in sorted(
                select_in(conn, "trace, path, digest, size", trace_artifacts, "trace", ids)
            ):
                files.setdefault(trace, []).append((file[0], file[1], file[2]))
            infos = traces_shapes.infos(conn, rows)
        found = [
            _Trace(
                info,
                [json.loads(each) for each in spans.get(row.id, ())],
                sorted(linked.get(row.id, ())),
                files.get(row.id, []),
            )
            for row, info in zip(rows, infos, strict=True)
        ]
        return (ids[-1] if ids else after), found

    def _trace(self, given: _Trace, experiment: str, there: Mapping[str, str]) -> None:
        name = given.info["trace_id"]
        whole = fingerprint(given)
        if there.get(posting.WHOLE) == whole:
            self._count(self._report.unchanged)
            return
        try:
            said = {"trace": {"trace_info": self._info(given, experiment)}}
            made = self._client.post("traces", said, api=NEWER)["trace"]["trace_info"]
            for run in given.runs:
                if run in self._runs:
                    self._client.post("traces/link-to-run", {"trace_ids": [name], "run_id": self._runs[run]})
            place = made.get("tags", {}).get(LOCATION, "")
            if given.files and not self._poster.upload(place, given.files):
                self._leave(f"{len(given.files)} files of trace {name}: the server does not take files")
        except _REFUSED as error:
            self._leave(f"trace {name}: {error.message}")
            return
        self._count(self._report.exported)
        refused = self._spans(given, experiment)
        if refused:  # not whole: the next export says so too, and tries again
            self._leave(f"{len(given.spans)} spans of trace {name}: {refused}")
            return
        mark = {"key": posting.WHOLE, "value": whole}
        self._client.post(f"traces/{name}/tags", mark, api=NEWER, method="PATCH")
        if self._compared < SAMPLE:
            self._compare(given)

    def _info(self, given: _Trace, experiment: str) -> dict[str, Any]:
        info = given.info
        metadata = dict(info["trace_metadata"])
        for key, there in ((_RUN, self._runs), (_MODEL, self._models)):
            if metadata.get(key) in there:
                metadata[key] = there[metadata[key]]
        return {
            **info,
            "trace_location": traces_shapes.place(int(experiment)),
            "trace_metadata": metadata,
            "tags": {key: value for key, value in info["tags"].items() if key not in SYSTEM_TAGS},
        }

    def _spans(self, given: _Trace, experiment: str) -> str:
        """Why the spans stay here; empty when they do not."""
        if not given.spans:
            return ""
        found = _NAMED.match(given.info["trace_id"])
        if found is None:
            return "its id is none of OpenTelemetry's"
        spans = [_otlp(each, found[1]) for each in given.spans]
        said = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
        try:
            self._client.post("v1/traces", said, api="", headers={"x-mlflow-experiment-id": experiment})
        except _REFUSED as error:
            return error.message
        return ""

    def _compare(self, given: _Trace) -> None:
        """Read a trace's spans back."""
        self._compared += 1
        name = given.info["trace_id"]
        mine = sorted(str(each.get("name", "")) for each in given.spans)
        found = sorted(str(each.get("name", "")) for each in self._source.spans(name))
        if mine != found:
            self._report.faults.append(f"trace {name}: {len(found)} spans are there, {len(mine)} here")

    def _count(self, counts: dict[str, int]) -> None:
        counts["traces"] = counts.get("traces", 0) + 1

    def _leave(self, line: str) -> None:
        if len(self._report.left) < 100:
            self._report.left.append(line)


def _otlp(content: Mapping[str, Any], trace: str) -> dict[str, Any]:
    """A span in protobuf's JSON, whose ids are base64, with the hexadecimal ids of OTLP's."""
    ids = {"spanId": content.get("span_id"), "parentSpanId": content.get("parent_span_id")}
    rest = {key: value for key, value in content.items() if key not in ("trace_id", "span_id", "parent_span_id")}
    return {**rest, "traceId": trace, **{key: hexadecimal(value) for key, value in ids.items() if value}}
