"""Operations on traces: versions 2 and 3 of MLflow's API, which share their paths below the version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.protocols.mlflow import checks
from modelkeep.protocols.mlflow import traces_shapes as shapes
from modelkeep.protocols.mlflow.experiments import Pair, Text
from modelkeep.protocols.mlflow.traces_assessments import Assessment, keep
from modelkeep.protocols.mlflow.wire import Operation, Work, missing
from modelkeep.registry import traces, traces_assessments, traces_search

State = Literal["STATE_UNSPECIFIED", "OK", "ERROR", "IN_PROGRESS"]
OldStatus = Literal["TRACE_STATUS_UNSPECIFIED", "OK", "ERROR", "IN_PROGRESS"]
MAX_PAGE = 500
MAX_IDS = 5000
SYSTEM_TAGS = frozenset({traces.SPANS_LOCATION, traces.ARTIFACTS, "mlflow.trace.archiveLocation"})
"""Tags that say where things are: only the server sets them."""


class OfExperiment(Struct, frozen=True):
    """An experiment as a place."""

    experiment_id: str = ""


class Place(Struct, frozen=True):
    """TraceLocation."""

    type: str = ""
    mlflow_experiment: OfExperiment | None = None


class Info(Struct, frozen=True):
    """TraceInfoV3."""

    trace_id: str = ""
    trace_location: Place = Place()
    client_request_id: str | None = None
    request: str | None = None
    response: str | None = None
    request_preview: str | None = None
    response_preview: str | None = None
    request_time: str = ""
    execution_duration: str | None = None
    state: State = "STATE_UNSPECIFIED"
    trace_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    assessments: list[Assessment] = []


class Whole(Struct, frozen=True):
    """Trace; its spans come on their own."""

    trace_info: Info


class Start(Struct, frozen=True):
    """startTraceV3 when it holds a trace, else startTrace."""

    trace: Whole | None = None
    experiment_id: str = ""
    timestamp_ms: int | None = None
    request_metadata: list[Pair] = []
    tags: list[Pair] = []


class End(Struct, frozen=True):
    """endTrace."""

    request_id: str
    timestamp_ms: int | None = None
    status: OldStatus = "TRACE_STATUS_UNSPECIFIED"
    request_metadata: list[Pair] = []
    tags: list[Pair] = []


class One(Struct, frozen=True):
    """A trace by id."""

    trace_id: str
    allow_partial: bool = False


class Several(Struct, frozen=True):
    """Traces by id, of these experiments when any are named."""

    trace_ids: list[str] = []
    experiment_ids: list[str] = []


class Search(Struct, frozen=True):
    """searchTracesV3, searchTraces, searchUnifiedTraces."""

    locations: list[Place] = []
    experiment_ids: list[str] = []
    filter: str = ""
    max_results: int = 100
    order_by: list[str] = []
    page_token: Text = ""
    model_id: str = ""


class Delete(Struct, frozen=True):
    """deleteTraces."""

    experiment_id: str
    max_timestamp_millis: int | None = None
    max_traces: int | None = None
    request_ids: list[str] = []


class Tag(Struct, frozen=True):
    """setTraceTag, deleteTraceTag."""

    request_id: str
    key: str
    value: str = ""


class LinkRun(Struct, frozen=True):
    """linkTracesToRun."""

    run_id: str
    trace_ids: list[str] = []


class PromptVersion(Struct, frozen=True):
    """A version of a prompt."""

    name: str
    version: str


class LinkPrompts(Struct, frozen=True):
    """linkPromptsToTrace."""

    trace_id: str
    prompt_versions: list[PromptVersion] = []


def _start(asked: Start, now: int) -> Work:
    if asked.trace is None:
        return _start_old(asked, now)
    info = asked.trace.trace_info
    if not info.trace_id:
        raise missing("trace.trace_info.trace_id")
    place = info.trace_location.mlflow_experiment
    if place is None:
        raise Invalid("trace.trace_info.trace_location: expected an experiment of this server")
    told = traces.Told(
        trace_id=traces.checked_id(info.trace_id),
        experiment=checks.experiment_id(place.experiment_id),
        start_ms=shapes.read_timestamp(info.request_time, "request_time") if info.request_time else now,
        duration_ms=_duration(info.execution_duration),
        status=info.state,
        client_request_id=_clean(info.client_request_id),
        request_preview=_clean(info.request_preview if info.request_preview is not None else info.request),
        response_preview=_clean(info.response_preview if info.response_preview is not None else info.response),
        metadata=shapes.pairs(info.trace_metadata.items(), "trace_metadata"),
        tags=_own_tags(shapes.pairs(info.tags.items(), "tags")),
        final=True,
    )
    assessments = [keep(each, now) for each in info.assessments]

    def work(conn: Connection) -> dict[str, Any]:
        row = traces.tell(conn, told)
        for each in assessments:
            traces_assessments.put(conn, row, each)
        return _answer(conn, row)

    return work


def _duration(text: str | None) -> int | None:
    return None if text is None else shapes.read_duration(text, "execution_duration")


def _clean(text: str | None) -> str | None:
    return None if text is None else text.replace("\0", "\ufffd")


def _own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key not in SYSTEM_TAGS}


def _answer(conn: Connection, row: Any) -> dict[str, Any]:
    return {"trace": {"trace_info": shapes.infos(conn, [row])[0]}}


def _start_old(asked: Start, now: int) -> Work:
    told = traces.Told(
        trace_id=f"tr-{traces.fresh_id()}",
        experiment=checks.experiment_id(asked.experiment_id),
        start_ms=now if asked.timestamp_ms is None else shapes.moment(asked.timestamp_ms, "timestamp_ms"),
        metadata=_pairs(asked.request_metadata, "request_metadata"),
        tags=_own_tags(_pairs(asked.tags, "tags")),
    )
    return lambda conn: {"trace_info": shapes.old_infos(conn, [traces.tell(conn, told)])[0]}


def _pairs(given: Sequence[Pair], what: str) -> dict[str, str]:
    return shapes.pairs(((pair.key, pair.value) for pair in given), what)


def _end(asked: End, now: int) -> Work:
    status = "STATE_UNSPECIFIED" if asked.status == "TRACE_STATUS_UNSPECIFIED" else asked.status
    end_ms = now if asked.timestamp_ms is None else shapes.moment(asked.timestamp_ms, "timestamp_ms")
    metadata, tags = _pairs(asked.request_metadata, "request_metadata"), _own_tags(_pairs(asked.tags, "tags"))

    def work(conn: Connection) -> dict[str, Any]:
        row = traces.end(conn, asked.request_id, end_ms, status, metadata, tags)
        return {"trace_info": shapes.old_infos(conn, [row])[0]}

    return work


def _info(asked: One, _: int) -> Work:
    return lambda conn: _answer(conn, traces.find(conn, asked.trace_id))


def _old_info(asked: One, _: int) -> Work:
    return lambda conn: {"trace_info": shapes.old_infos(conn, [traces.find(conn, asked.trace_id)])[0]}


def _get(asked: One, _: int) -> Work:
    def work(conn: Connection) -> dict[str, Any]:
        found = shapes.whole(conn, [traces.find(conn, asked.trace_id)], partial=asked.allow_partial)
        if not found:
            raise NotFound(f"Trace with ID {asked.trace_id} is not fully exported yet, please try again later.")
        return {"trace": found[0]}

    return work


def _several(asked: Several) -> tuple[list[str], list[int] | None]:
    if not asked.trace_ids:
        raise missing("trace_ids")
    if len(asked.trace_ids) > MAX_IDS:
        raise Invalid(f"trace_ids: {len(asked.trace_ids)} given; at most {MAX_IDS}")
    within = [checks.experiment_id(each) for each in asked.experiment_ids]
    return asked.trace_ids, within or None


def _batch(asked: Several, _: int) -> Work:
    ids, within = _several(asked)
    return lambda conn: {"traces": shapes.whole(conn, traces.find_many(conn, ids, within))}


def _batch_infos(asked: Several, _: int) -> Work:
    ids, within = _several(asked)
    return lambda conn: {"trace_infos": shapes.infos(conn, traces.find_many(conn, ids, within))}


def _found(asked: Search, form: Any) -> Work:
    checks.page(asked.max_results, MAX_PAGE)
    places = [each.mlflow_experiment.experiment_id for each in asked.locations if each.mlflow_experiment]
    within = [checks.experiment_id(each) for each in dict.fromkeys([*places, *asked.experiment_ids])]
    if not within:
        raise missing("locations" if form is shapes.infos else "experiment_ids")

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = traces_search.find(
            conn,
            within,
            asked.filter,
            asked.order_by,
            asked.max_results,
            asked.page_token,
            model_id=asked.model_id,
        )
        return {"traces": form(conn, rows), **({"next_page_token": token} if token else {})}

    return work


def _search(asked: Search, _: int) -> Work:
    return _found(asked, shapes.infos)


def _search_old(asked: Search, _: int) -> Work:
    return _found(asked, shapes.old_infos)


def _delete(asked: Delete, _: int) -> Work:
    number = checks.experiment_id(asked.experiment_id)
    if not asked.request_ids and asked.max_timestamp_millis is None:
        raise Invalid("Either `max_timestamp_millis` or `trace_ids` must be specified.")
    if asked.request_ids and asked.max_timestamp_millis is not None:
        raise Invalid("Only one of `max_timestamp_millis` and `trace_ids` can be specified.")
    if asked.request_ids and asked.max_traces is not None:
        raise Invalid("`max_traces` can't be specified if `trace_ids` is specified.")
    if asked.max_traces is not None and asked.max_traces < 1:
        raise Invalid(f"`max_traces` must be a positive integer, received {asked.max_traces}.")
    if len(asked.request_ids) > MAX_IDS:
        raise Invalid(f"request_ids: {len(asked.request_ids)} given; at most {MAX_IDS}")
    until, most = asked.max_timestamp_millis, asked.max_traces
    return lambda conn: {
        "traces_deleted": traces.forget(conn, number, ids=asked.request_ids, until_ms=until, most=most)
    }


def _tag(asked: Tag) -> tuple[str, str]:
    if asked.key in SYSTEM_TAGS:
        raise Invalid(f"Tag '{asked.key}' is immutable and cannot be changed on a trace.")
    checks.key(asked.key, "key")
    return asked.key, asked.value[:8000].replace("\0", "\ufffd")


def _set_tag(asked: Tag, _: int) -> Work:
    key, value = _tag(asked)
    return lambda conn: traces.set_tag(conn, asked.request_id, key, value)


def _delete_tag(asked: Tag, _: int) -> Work:
    key, _value = _tag(asked)
    return lambda conn: traces.delete_tag(conn, asked.request_id, key)


def _link_run(asked: LinkRun, _: int) -> Work:
    if len(asked.trace_ids) > traces.MAX_LINKS:
        raise Invalid(
            f"Cannot link more than {traces.MAX_LINKS} traces to a run in a single request."
            f" Provided {len(asked.trace_ids)} traces."
        )
    return lambda conn: traces.link_run(conn, asked.trace_ids, asked.run_id)


def _link_prompts(asked: LinkPrompts, _: int) -> Work:
    if len(asked.prompt_versions) > traces.MAX_LINKS:
        raise Invalid(f"prompt_versions: {len(asked.prompt_versions)} given; at most {traces.MAX_LINKS}")
    prompts = [(each.name, each.version) for each in asked.prompt_versions]
    return lambda conn: traces.link_prompts(conn, asked.trace_id, prompts)


OPERATIONS = [
    Operation("POST", "traces", Start, _start, "write"),
    Operation("PATCH", "traces/{request_id}", End, _end, "write"),
    Operation("GET", "traces", Search, _search_old),
    Operation("GET", "unified-traces", Search, _search_old),
    Operation("POST", "traces/search", Search, _search),
    Operation("GET", "traces/get", One, _get),
    Operation("GET", "traces/batchGet", Several, _batch),
    Operation("POST", "traces/batchGetInfos", Several, _batch_infos),
    Operation("GET", "traces/{trace_id}", One, _info),
    Operation("GET", "traces/{trace_id}/info", One, _old_info),
    Operation("PATCH", "traces/{request_id}/tags", Tag, _set_tag, "write"),
    Operation("DELETE", "traces/{request_id}/tags", Tag, _delete_tag, "write"),
    Operation("POST", "traces/delete-traces", Delete, _delete, "write"),
    Operation("POST", "traces/link-to-run", LinkRun, _link_run, "write"),
    Operation("POST", "traces/link-prompts", LinkPrompts, _link_prompts, "write"),
]
