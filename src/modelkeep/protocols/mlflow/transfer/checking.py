"""Whether what was copied is the same here as there: records, whole histories, and every byte of the files."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from blake3 import blake3
from msgspec import Struct
from sqlalchemy import select

from modelkeep.core.errors import Damaged, ModelkeepError
from modelkeep.core.ports import Progress
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import departing, evaluated, hooked
from modelkeep.protocols.mlflow.transfer.records import LoggedModel, Owned, Point, Run, Source, id_of
from modelkeep.store import tables
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models

SAMPLE = 200
_BLOCK = 1 << 20


class Checked(Struct):
    """What was compared.

    Attributes:
        faults: What differs, one line each; empty when all is as it was there.
    """

    runs: int = 0
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
        self._held: list[tuple[int, str, Owned]] = []

    def see(self, given: Sequence[Owned]) -> None:
        """Consider some more."""
        for each in given:
            name = id_of(each)
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


def check(keep: Keep, source: Source, sample: Sample, *, files: bool, progress: Progress) -> Checked:
    """Read the chosen records once more from both sides and compare.

    Args:
        files: Compare the bytes of their files too.
    """
    found = Checked(faults=[])
    chosen = sample.runs()
    with keep.db.read() as conn:
        here = departing.runs_of(conn, [run.run_id for run in chosen])
    for done, run in enumerate(chosen, start=1):
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
