"""What travels between an MLflow store and here, in the same form whichever kind of store it comes from.

Times are whole milliseconds since 1970 UTC, as MLflow keeps them. A value that is None is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, BinaryIO, Protocol, TypeVar

import msgspec
from msgspec import Struct, field

from modelkeep.registry.datasets import DatasetInput

T = TypeVar("T")

Point = tuple[str, str, int, int, float | None]
"""Run id, key, timestamp, step, value."""

ModelPoint = tuple[str, str, str, str, int, int, float | None]
"""Key, run id, dataset name, dataset digest, timestamp, step, value: of a logged model."""


class Experiment(Struct, frozen=True):
    """An experiment as the source holds it; ``artifact_location`` is a place of the source."""

    id: int
    name: str
    artifact_location: str
    lifecycle_stage: str
    created_ms: int
    updated_ms: int
    tags: dict[str, str] = field(default_factory=dict)


class Run(Struct, frozen=True):
    """A run with everything but its histories and files.

    Attributes:
        latest: (key, value, timestamp, step) of the last point of each metric, in order of keys.
        models: (``input`` or ``output``, model id, step).
    """

    run_id: str
    experiment: int
    name: str
    status: str
    lifecycle_stage: str
    artifact_uri: str
    start_ms: int
    end_ms: int | None = None
    deleted_ms: int | None = None
    user_id: str = ""
    source_type: str = "LOCAL"
    source_name: str = ""
    source_version: str = ""
    entry_point_name: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    latest: list[tuple[str, float | None, int, int]] = field(default_factory=list)
    datasets: list[DatasetInput] = field(default_factory=list)
    models: list[tuple[str, str, int]] = field(default_factory=list)


class LoggedModel(Struct, frozen=True):
    """A logged model of MLflow 3; ``metrics`` as far as the source tells them."""

    model_id: str
    experiment: int
    name: str
    status: str
    lifecycle_stage: str
    artifact_uri: str
    created_ms: int
    updated_ms: int
    model_type: str = ""
    source_run_id: str = ""
    status_message: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[ModelPoint] = field(default_factory=list)


class Trace(Struct, frozen=True):
    """A trace.

    Attributes:
        duration_ms: Milliseconds; None while it goes on.
        assessments: MLflow's ``Assessment`` in protobuf's JSON.
        spans: As MLflow writes them (``Span.to_dict``).
        runs: Ids of runs it was linked to.
    """

    trace_id: str
    experiment: int
    start_ms: int
    duration_ms: int | None
    status: str
    client_request_id: str | None = None
    request_preview: str | None = None
    response_preview: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    assessments: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


class Version(Struct, frozen=True):
    """A version of a registered model; ``location`` is where its files are, when it is not ``source``."""

    version: int
    created_ms: int
    updated_ms: int
    source: str = ""
    location: str = ""
    run_id: str = ""
    run_link: str = ""
    description: str = ""
    user_id: str = ""
    stage: str = "None"
    status: str = "READY"
    status_message: str = ""
    tags: dict[str, str] = field(default_factory=dict)


class Model(Struct, frozen=True):
    """A registered model with its versions, in order, and the version of each alias."""

    name: str
    created_ms: int
    updated_ms: int
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)


class EvaluationDataset(Struct, frozen=True):
    """A dataset that evaluations run on, without its records; ``schema`` is JSON."""

    dataset_id: str
    name: str
    digest: str
    created_ms: int
    updated_ms: int
    schema: str | None = None
    created_by: str | None = None
    updated_by: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    experiments: list[int] = field(default_factory=list)


class EvaluationRecord(Struct, frozen=True):
    """A record of one; ``content`` has those of inputs, outputs, expectations, tags and source that there are."""

    record_id: str
    content: dict[str, Any]
    created_ms: int
    updated_ms: int
    created_by: str | None = None
    updated_by: str | None = None


class Hook(Struct, frozen=True):
    """A webhook.

    Attributes:
        events: As ``model_version.created``.
        secret: What signs; empty for none, None when the source does not tell.
    """

    hook_id: str
    name: str
    url: str
    status: str
    events: list[str]
    created_ms: int
    updated_ms: int
    description: str = ""
    secret: str | None = None


Owned = Run | LoggedModel
"""What has files of its own."""


def plain(text: str) -> str:
    """Text without the letter NUL, which PostgreSQL does not keep."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def some(given: Iterable[T], most: int) -> Iterator[list[T]]:
    """Lists of at most so many, in order."""
    left = iter(given)
    while batch := list(islice(left, most)):
        yield batch


def id_of(owner: Owned) -> str:
    """A run's or a logged model's id."""
    return owner.run_id if isinstance(owner, Run) else owner.model_id


def is_over(owner: Owned) -> bool:
    """Whether its maker has said that nothing more will come."""
    return owner.end_ms is not None if isinstance(owner, Run) else owner.status == "LOGGED_MODEL_READY"


class Source(Protocol):
    """An MLflow store that is only read.

    Attributes:
        origin: What it is, the same at every import: its address without passwords.
        note: What a reader should know of it, as its schema's revision; may be empty.
        untold: Attributes of runs that it does not tell.
    """

    origin: str
    note: str
    untold: frozenset[str]

    def experiments(self) -> list[Experiment]:
        """All, deleted ones too."""
        ...

    def runs(self, experiment: int) -> Iterator[list[Run]]:
        """Pages of all runs, deleted ones too."""
        ...

    def points(self, runs: Sequence[Run]) -> Iterator[list[Point]]:
        """The whole histories of these runs, in pieces of bounded size."""
        ...

    def logged_models(self, experiment: int) -> Iterator[list[LoggedModel]]:
        """Pages of all logged models, deleted ones too where the source tells them."""
        ...

    def traces(self, experiment: int) -> Iterator[list[Trace]]:
        """Pages of traces; none from a source that cannot tell them."""
        ...

    def models(self) -> Iterator[list[Model]]:
        """Pages of registered models."""
        ...

    def evaluation_datasets(self) -> Iterator[list[EvaluationDataset]]:
        """Pages of the datasets of evaluations; none from a source that cannot tell them."""
        ...

    def evaluation_records(self, dataset_id: str) -> Iterator[list[EvaluationRecord]]:
        """Pages of the records of one."""
        ...

    def webhooks(self) -> list[Hook]:
        """All; none from a source that cannot tell them."""
        ...

    def files(self, owner: Owned) -> list[tuple[str, int | None]]:
        """Path and size in bytes (None when unknown) of each file, in order. Raises ``Invalid``."""
        ...

    def open(self, owner: Owned, path: str) -> AbstractContextManager[BinaryIO]:
        """One file's bytes, streamed. Raises ``NotFound``, ``Unavailable``."""
        ...

    def totals(self) -> dict[str, int]:
        """How many ``runs`` and ``points`` it holds; what it cannot tell is left out."""
        ...

    def others(self) -> dict[str, int]:
        """How many there are of each kind of thing that is not copied."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def fingerprint(record: Struct, *more: Any) -> str:
    """Digest of what a record holds: 64 hexadecimal characters."""
    text = msgspec.json.encode((record, *more), order="deterministic")
    return hashlib.blake2b(text, digest_size=32).hexdigest()
