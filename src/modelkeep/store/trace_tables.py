"""Tables of traces with their spans and assessments, and of the datasets that evaluations run on.

Units are those of ``tables``; columns ending in ``_ns`` are whole nanoseconds since 1970 UTC.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, SmallInteger, Table, Text, UniqueConstraint, func

from modelkeep.store.columns import metadata, number, of, row_id, text, values
from modelkeep.store.tables import INDEXED_TEXT

traces = Table(
    "traces",
    metadata,
    row_id(),
    text("trace_id", unique=True),
    of("experiments", "experiment"),
    Column("name", Text),  # of the tag mlflow.traceName, for groups
    text("status", "IN_PROGRESS"),  # IN_PROGRESS, OK, ERROR, STATE_UNSPECIFIED
    number("start_ms"),
    Column("duration_ms", BigInteger),
    Column("client_request_id", Text),
    Column("request_preview", Text),
    Column("response_preview", Text),
    Column("session", Text),  # of the metadata mlflow.trace.session
    Column("input_tokens", BigInteger),  # these five of the metadata mlflow.trace.tokenUsage
    Column("output_tokens", BigInteger),
    Column("total_tokens", BigInteger),
    Column("cache_read_input_tokens", BigInteger),
    Column("cache_creation_input_tokens", BigInteger),
    number("final", 0, SmallInteger),  # its client has told of it as a whole: spans no longer change it
)
Index("ix_traces_recent", traces.c.experiment, traces.c.start_ms, traces.c.trace_id)
Index("ix_traces_session", traces.c.experiment, traces.c.session)

trace_tags = values("trace_tags", "traces", "trace")
trace_metadata = values("trace_metadata", "traces", "trace")
for _table in (trace_tags, trace_metadata):
    _value = func.substr(_table.c.value, 1, INDEXED_TEXT)
    Index(f"ix_{_table.name}_search", _table.c.key, _value, _table.c.trace)

trace_spans = Table(
    "trace_spans",
    metadata,
    row_id(),
    of("traces", "trace"),
    text("span_id"),
    Column("parent_id", Text),
    text("name", ""),
    Column("type", Text),
    text("status"),  # UNSET, OK, ERROR
    number("start_ns"),
    Column("end_ns", BigInteger),
    Column("model", Text),
    Column("provider", Text),
    Column("input_cost", Double),
    Column("output_cost", Double),
    Column("total_cost", Double),
    Column("usage", Text),  # JSON of its token counts
    Column("cost", Text),  # JSON of its costs
    text("content"),  # the span of the OTLP, in protobuf's JSON
    UniqueConstraint("trace", "span_id"),
)

trace_assessments = Table(
    "trace_assessments",
    metadata,
    row_id(),
    of("traces", "trace"),
    text("assessment_id"),
    text("kind"),  # feedback, expectation, issue
    text("name"),
    text("value"),  # JSON
    Column("number", Double),  # of a number, a boolean, yes and no
    number("numeric", 0, SmallInteger),  # the value is a number
    number("valid", 1, SmallInteger),  # no other assessment overrides it
    Column("session", Text),  # it speaks of this session as a whole
    text("overrides", ""),
    text("content"),  # MLflow's Assessment in protobuf's JSON
    UniqueConstraint("trace", "assessment_id"),
)
Index("ix_trace_assessments_name", trace_assessments.c.kind, trace_assessments.c.name, trace_assessments.c.trace)

trace_links = Table(
    "trace_links",
    metadata,
    of("traces", "trace", primary_key=True),
    text("kind", primary_key=True),  # run, prompt
    text("target", primary_key=True),  # a run's id, <prompt>/<version>
    sqlite_with_rowid=False,
)
Index("ix_trace_links_target", trace_links.c.kind, trace_links.c.target, trace_links.c.trace)

trace_artifacts = Table(
    "trace_artifacts",
    metadata,
    of("traces", "trace", primary_key=True),
    text("path", primary_key=True),
    text("digest"),
    number("size"),
    sqlite_with_rowid=False,
)

evaluation_datasets = Table(
    "evaluation_datasets",
    metadata,
    row_id(),
    text("dataset_id", unique=True),
    text("name"),
    text("digest"),
    Column("schema", Text),  # JSON
    number("records", 0),
    Column("created_by", Text),
    Column("updated_by", Text),
    number("created_ms"),
    number("updated_ms"),
)
Index("ix_evaluation_datasets_name", evaluation_datasets.c.name)

evaluation_tags = values("evaluation_tags", "evaluation_datasets", "dataset")

evaluation_experiments = Table(
    "evaluation_experiments",
    metadata,
    of("evaluation_datasets", "dataset", primary_key=True),
    of("experiments", "experiment", primary_key=True),
    sqlite_with_rowid=False,
)
Index("ix_evaluation_experiments_experiment", evaluation_experiments.c.experiment)

evaluation_records = Table(
    "evaluation_records",
    metadata,
    row_id(),  # the order of the pages
    of("evaluation_datasets", "dataset"),
    text("record_id"),
    text("inputs_digest"),
    text("content"),  # JSON of inputs, outputs, expectations, tags, source
    Column("created_by", Text),
    Column("updated_by", Text),
    number("created_ms"),
    number("updated_ms"),
    UniqueConstraint("dataset", "inputs_digest"),
    UniqueConstraint("dataset", "record_id"),
)
