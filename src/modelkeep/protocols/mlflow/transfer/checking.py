"""Whether what was copied is the same here as there: records, whole histories, and every byte of the files.

All experiments are compared, and all registered models with their versions, tags and aliases; of runs, logged
models and traces, which may be many, those that were chosen while they passed by.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from hashlib import blake2b

import msgspec
from blake3 import blake3
from msgspec import Struct
from sqlalchemy import select

from modelkeep.core.errors import Damaged, ModelkeepError
from modelkeep.core.ports import Progress
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import comparing, departing, evaluated, hooked
from modelkeep.protocols.mlflow.transfer.comparing import Copied
from modelkeep.protocols.mlflow.transfer.records import LoggedModel, Owned, Point, Run, Source, Trace, id_of, some
from modelkeep.store import tables
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models

SAMPLE = 200
PAGE = 500
"""Runs read at once."""

_BLOCK = 1 << 20


class Checked(Struct):
    """What was compared.

    Attributes:
        faults: What differs, one line each; empty when all is as it was there.
    """

    experiments: int = 0
    models: int = 0
    versions: int = 0
    runs: int = 0
    logged_models: int = 0
    traces: int = 0
    records: int = 0
    webhooks: int = 0
    points: int = 0
    files: int = 0
    bytes: int = 0
    faults: list[str] = []


class Sample:
    """Evenly chosen records: those whose ids have the smallest digests, however many pass by."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[tuple[int, str, Owned | Trace]] = []

    def see(self, given: Iterable[Owned | Trace]) -> None:
        """Consider some more."""
        for each in given:
            name = each.trace_id if isinstance(each, Trace) else id_of(each)
            rank = -int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
            if len(self._held) < self._most:
                heapq.heappush(self._held, (rank, name, each))
            elif self._held and rank > self._held[0][0]:
                heapq.heapreplace(self._held, (rank, name, each))

    def runs(self) -> list[Run]:
        """The runs chosen."""
        return [each for _, _, each in sorted(self._held, key=lambda held: held[1]) if isinstance(each, Run)]

    def models(self) -> list[LoggedModel]:
        """The logged models chosen."""
        return [each for _, _, each in self._held if isinstance(each, LoggedModel)]

    def traces(self) -> list[Trace]:
        """The traces chosen."""
        return [each for _, _, each in self._held if isinstance(each, Trace)]


def check(
    keep: Keep, source: Source, sample: Sample, copied: Copied, *, files: bool, progress: Progress
) -> Checked:
    """Compare what is here with what was copied, histories and files of the chosen runs with the source once more.

    Args:
        files: Compare the bytes of their files too.
    """
    found = Checked(faults=[])
    _records(keep, sample, copied, found)
    chosen = sample.runs()
    done = 0
    for page in some(chosen, PAGE):
        with keep.db.read() as conn:
            here = departing.runs_of(conn, [run.run_id for run in page])
        for run in page:
            done += 1
            progress.step("verifying", done, len(chosen), run.name)
            if run.run_id not in here:
                found.faults.append(f"run {run.run_id}: is not here")
                continue
            found.runs += 1
            found.faults += _differences(run, here[run.run_id], source.untold)
            _histories(keep, source, run, found)
            if files:
                _files(keep, source, run, found)
    for model in sample.models() if files else ():
        _files(keep, source, model, found)
    for compared, said in (("records", evaluated.differences), ("webhooks", hooked.differences)):
        same, faults = said(keep, source)
        setattr(found, compared, same)
        found.faults += faults
    return found


def _records(keep: Keep, sample: Sample, copied: Copied, found: Checked) -> None:
    for faults in comparing.experiments(keep, copied.experiments):
        found.experiments += 1
        found.faults += faults
    for versions, faults in comparing.models(keep, copied.models):
        found.models += 1
        found.versions += versions
        found.faults += faults
    for faults in comparing.logged_models(keep, sample.models()):
        found.logged_models += 1
        found.faults += faults
    for faults in comparing.chosen_traces(keep, copied.traces):
        found.traces += 1
        found.faults += faults


def _differences(there: Run, here: Run, untold: frozenset[str]) -> list[str]:
    faults = []
    for name in Run.__struct_fields__:
        was, now = getattr(there, name), getattr(here, name)
        if name in ("experiment", "artifact_uri") or name in untold:
            continue
        if name == "datasets":
            was, now = (sorted(msgspec.json.encode(each, order="sorted") for each in uses) for uses in (was, now))
        if isinstance(was, dict):
            now = {key: now.get(key) for key in was}
        if was != now:
            faults.append(f"run {there.run_id}: {name} differs")
    return faults


def _histories(keep: Keep, source: Source, run: Run, found: Checked) -> None:
    with keep.db.read() as conn:
        here = {point for piece in departing.points(conn, [run]) for point in piece}
    lost: set[Point] = set()
    for piece in source.points([run]):
        found.points += len(piece)
        lost.update(point for point in piece if point not in here)
    if lost:
        key = min(point[1] for point in lost)
        found.faults.append(f"run {run.run_id}: {len(lost)} points are not here, the first of {key!r}")


def _files(keep: Keep, source: Source, owner: Owned, found: Checked) -> None:
    """Every file's bytes against the digest that was kept."""
    who = f"run {owner.run_id}" if isinstance(owner, Run) else f"logged model {owner.model_id}"
    kept = _kept(keep, owner)
    try:
        listed = source.files(owner)
    except ModelkeepError:
        return  # what could not be read was said when it was copied
    for path, _ in listed:
        digest, whole = kept.get(path, ""), blake3()
        if not digest:
            found.faults.append(f"{who}: {path} is not here")
            continue
        with source.open(owner, path) as stream:
            while block := stream.read(_BLOCK):
                whole.update(block)
                found.bytes += len(block)
        found.files += 1
        if whole.hexdigest() != digest:
            found.faults.append(f"{who}: {path} differs")
            continue
        try:
            keep.blobs.open(digest).close()
        except (Damaged, ModelkeepError) as error:
            found.faults.append(f"{who}: {path}: {error.message}")


def _kept(keep: Keep, owner: Owned) -> dict[str, str]:
    if isinstance(owner, Run):
        table, column, name, of = tables.run_artifacts, "run", owner.run_id, tables.runs
        key = tables.runs.c.run_id
    else:
        table, column, name, of = logged_model_artifacts, "model", owner.model_id, logged_models
        key = logged_models.c.model_id
    query = select(table.c.path, table.c.digest).join(of, of.c.id == table.c[column]).where(key == name)
    with keep.db.read() as conn:
        return {row.path: row.digest for row in conn.execute(query)}
