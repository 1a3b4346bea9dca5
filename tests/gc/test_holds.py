"""Legal hold: what is held, and all it reaches, is not deleted by anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from test_gc import deleted, line, run_with, sound, swept

from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.core.errors import Conflict, Invalid, NotFound, Refused
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import artifacts, catalog, events, experiments, holds, logged, runs, tracking
from modelkeep.registry.artifacts import Owner
from small import Project

NOW = 1_700_000_000.0


@pytest.fixture
def keep(tmp_path: Path, url: str) -> Iterator[Keep]:
    home = tmp_path / "home"
    opened = connect(Settings(home, url, str(home / "blobs")), tmp_path)
    yield opened
    opened.close()


class Made:
    """An experiment, its run with a file, its logged model, and the version registered from it.

    Args:
        files_of: All that the version is known by: that its files are the run's or the logged model's.
    """

    def __init__(self, keep: Keep, files_of: str = "") -> None:
        self.run = run_with(keep, {"f": b"evidence"})
        with keep.db.read() as conn:
            self.experiment = runs.get(conn, self.run).experiment_id
            self.row = runs.find(conn, self.run).id
        made = {"name": "x", "model_type": "", "source_run_id": self.run, "params": {}, "tags": {}}
        self.logged = keep.db.write(lambda conn: logged.create(conn, self.experiment, 1, **made)).model_id
        number = keep.db.write(lambda conn: catalog.create_model(conn, "m", 1)).id
        origin = catalog.Origin(source="s3://x/y", run_id=self.run, model_id=self.logged)
        if files_of:
            owner = self.run if files_of == "run" else self.logged
            origin = catalog.Origin(source=f"mlflow-artifacts:/1/{owner}/artifacts/f", files_of=owner)
        new = catalog.NewVersion(number, origin, {}, 1)
        keep.db.write(lambda conn: catalog.create_versions(conn, [new]))

    def deletions(self) -> dict[str, Callable[[Connection], Any]]:
        """Every way to delete a part of it."""
        return {
            "experiment": lambda conn: experiments.delete_one(conn, self.experiment, 2),
            "run": lambda conn: tracking.set_stage(conn, self.run, "deleted", 2),
            "file": lambda conn: artifacts.remove(conn, Owner("run", self.row), "f"),
            "other bytes": artifacts.Put(Owner("run", self.row), "f", "0" * 64, 1),
            "logged model": lambda conn: logged.delete_one(conn, self.logged, 2),
            "model": lambda conn: catalog.delete_model(conn, "m"),
            "version": lambda conn: catalog.delete_version(conn, "m", 1, 2),
            "name": lambda conn: catalog.rename(conn, "m", "n", 2),
        }


OF_RUN = {"experiment", "run", "file", "other bytes"}
OF_MODEL = OF_RUN | {"logged model", "model", "version", "name"}


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        ("run", OF_RUN | {"logged model"}),
        ("experiment", OF_RUN | {"logged model"}),
        ("model", OF_MODEL),
        ("version", OF_MODEL),
    ],
)
def test_what_a_hold_reaches_cannot_be_deleted(keep: Keep, kind: str, reached: set[str]) -> None:
    made = Made(keep)
    name = {"run": made.run, "experiment": str(made.experiment), "model": "m", "version": "m@1"}[kind]
    keep.db.write(lambda conn: holds.add(conn, kind, name, "case 1", now=NOW, actor="ann"))
    refused = set()
    for what, delete in made.deletions().items():
        if what in reached:
            with pytest.raises(Refused, match="legal hold"):
                keep.db.write(delete)
            refused.add(what)
    assert refused == reached
    keep.db.write(lambda conn: holds.release(conn, kind, name, "over", now=NOW + 1, actor="bob"))
    order = ["other bytes", "file", "run", "experiment", "logged model", "version", "name"]
    for what in order:
        keep.db.write(made.deletions()[what])
    with keep.db.read() as conn:
        said = [(event.kind, event.subject, event.actor, event.data) for event in events.history(conn)]
        assert events.verify(conn) == []
    assert said == [
        ("hold.added", name, "ann", {"kind": kind, "reason": "case 1"}),
        ("hold.released", name, "bob", {"kind": kind, "reason": "over"}),
    ]


def test_tags_of_what_is_held_are_not_taken_away(keep: Keep) -> None:
    made = Made(keep)
    keep.db.write(lambda conn: runs.log(conn, made.run, tags={"a": "1"}))
    keep.db.write(lambda conn: catalog.set_version_tags(conn, "m", 1, {"a": "1"}, 2))
    keep.db.write(lambda conn: holds.add(conn, "version", "m@1", "case 1", now=NOW))
    deletions: list[Callable[[Connection], Any]] = [
        lambda conn: tracking.delete_tag(conn, made.run, "a"),
        lambda conn: catalog.delete_version_tag(conn, "m", 1, "a"),
    ]
    for delete in deletions:
        with pytest.raises(Refused, match="legal hold"):
            keep.db.write(delete)
    keep.db.write(lambda conn: holds.release(conn, "version", "m@1", "over", now=NOW + 1))
    for delete in deletions:
        keep.db.write(delete)


@pytest.mark.parametrize(("owner", "reached"), [("run", OF_MODEL - {"logged model"}), ("model", OF_MODEL)])
def test_a_hold_reaches_the_files_of_a_version_that_names_no_run(
    keep: Keep, owner: str, reached: set[str]
) -> None:
    made = Made(keep, files_of=owner)
    keep.db.write(lambda conn: holds.add(conn, "version", "m@1", "case 1", now=NOW))
    refused = set()
    for what, delete in made.deletions().items():
        if what in reached:
            with pytest.raises(Refused, match="legal hold"):
                keep.db.write(delete)
            refused.add(what)
    assert refused == reached
    keep.db.write(lambda conn: holds.release(conn, "version", "m@1", "over", now=NOW + 1))
    keep.db.write(made.deletions()["run"])


def test_gc_leaves_the_files_of_versions_that_name_no_run(keep: Keep) -> None:
    made = [run_with(keep, {"f": name.encode()}, name) for name in ("a", "b", "c")]
    with keep.db.read() as conn:
        number = runs.get(conn, made[1]).experiment_id
    about = {"name": "x", "model_type": "", "source_run_id": made[1], "params": {}, "tags": {}}
    of_models = [keep.db.write(lambda conn: logged.create(conn, number, 1, **about)).model_id for _ in range(2)]
    model = keep.db.write(lambda conn: catalog.create_model(conn, "m", 1)).id
    for owner in (made[0], of_models[0]):
        origin = catalog.Origin(source=f"mlflow-artifacts:/1/{owner}/artifacts/f", files_of=owner)
        new = catalog.NewVersion(model, origin, {}, 1)
        keep.db.write(lambda conn, new=new: catalog.create_versions(conn, [new]))
    for each in made:
        deleted(keep, each, 100)
    for each in of_models:
        ms = round((time.time() - 90 * 86400) * 1000)
        keep.db.write(lambda conn, each=each, ms=ms: logged.delete_one(conn, each, ms))
    found = swept(keep)
    assert (line(found, "runs")[0], line(found, "logged models")[0]) == (2, 1)
    with keep.db.read() as conn:
        kept = runs.get(conn, made[0])
        assert logged.find(conn, of_models[0], deleted=True).model_id == of_models[0]
    assert keep.blobs.open(kept.artifacts["f"][0]).read() == b"a"
    keep.db.write(lambda conn: catalog.delete_model(conn, "m"))
    assert line(swept(keep), "runs")[0] == 1


def test_others_can_still_be_deleted(keep: Keep) -> None:
    made = Made(keep)
    other = run_with(keep, {"f": b"nothing"}, "elsewhere")
    keep.db.write(lambda conn: holds.add(conn, "run", made.run, "", now=NOW))
    keep.db.write(lambda conn: tracking.set_stage(conn, other, "deleted", 2))
    keep.db.write(lambda conn: catalog.delete_version(conn, "m", 1, 2))


def test_gc_leaves_what_is_held_though_it_was_deleted_before(keep: Keep) -> None:
    held, plain, in_experiment = (run_with(keep, {"f": name.encode()}, name) for name in ("a", "b", "c"))
    for each in (held, plain, in_experiment):
        deleted(keep, each, 100)
    with keep.db.read() as conn:
        number = runs.get(conn, in_experiment).experiment_id
    ms = round((time.time() - 90 * 86400) * 1000)
    keep.db.write(lambda conn: experiments.delete_one(conn, number, ms))
    keep.db.write(lambda conn: holds.add(conn, "run", held, "", now=NOW))
    keep.db.write(lambda conn: holds.add(conn, "experiment", str(number), "", now=NOW))
    assert line(swept(keep, dry_run=True), "runs")[0] == 1
    swept(keep)
    with keep.db.read() as conn:
        kept = [runs.get(conn, each) for each in (held, in_experiment)]
        with pytest.raises(NotFound):
            runs.get(conn, plain)
    assert [keep.blobs.open(run.artifacts["f"][0]).read() for run in kept] == [b"a", b"c"]
    assert sound(keep)
    keep.db.write(lambda conn: holds.release(conn, "run", held, "", now=NOW))
    keep.db.write(lambda conn: holds.release(conn, "experiment", str(number), "", now=NOW))
    found = swept(keep)
    assert line(found, "runs")[0] == 2
    assert line(found, "experiments")[0] == 1


def test_a_held_snapshot_and_the_snapshot_of_a_held_version_stay(project: Project) -> None:
    from modelkeep.registry import models, snapshots

    project.apply()
    with project.opened() as keep:
        with keep.db.read() as conn:
            version = models.versions(conn, "late")[0]
            assert version.lineage is not None
            digest = version.lineage.snapshot
        for kind, name in (("snapshot", digest), ("version", version.name), ("model", "late")):
            keep.db.write(lambda conn, kind=kind, name=name: holds.add(conn, kind, name, "", now=NOW))
            with pytest.raises(Refused):
                keep.db.write(lambda conn: snapshots.withdraw(conn, "late", digest))
            keep.db.write(lambda conn, kind=kind, name=name: holds.release(conn, kind, name, "", now=NOW))
        keep.db.write(lambda conn: snapshots.withdraw(conn, "late", digest))


def test_mistakes_are_said(keep: Keep) -> None:
    run_id = run_with(keep, {})
    write = keep.db.write
    with pytest.raises(NotFound, match="no run 'nothing'"):
        write(lambda conn: holds.add(conn, "run", "nothing", "", now=NOW))
    with pytest.raises(Invalid, match="endpoint"):
        write(lambda conn: holds.add(conn, "endpoint", "x", "", now=NOW))
    with pytest.raises(NotFound, match="is not held"):
        write(lambda conn: holds.release(conn, "run", run_id, "", now=NOW))
    write(lambda conn: holds.add(conn, "run", run_id, "why", now=NOW))
    with pytest.raises(Conflict, match="held already: why"):
        write(lambda conn: holds.add(conn, "run", run_id, "again", now=NOW))
    with keep.db.read() as conn:
        assert [(each.kind, each.name, each.reason) for each in holds.listing(conn)] == [("run", run_id, "why")]


def test_the_run_of_a_held_version_stays_as_it_is_when_another_is_made(project: Project) -> None:
    from modelkeep.registry import models

    project.apply()
    with project.opened() as keep:
        with keep.db.read() as conn:
            first = models.versions(conn, "late")[0]
            before = runs.get(conn, first.run_id)
        keep.db.write(lambda conn: holds.add(conn, "version", first.name, "case 1", now=NOW))
    project.write(first=5000)
    project.apply()
    with project.opened() as keep:
        with keep.db.read() as conn:
            assert len(models.versions(conn, "late")) == 2
            assert runs.get(conn, first.run_id) == before
        for change in (
            lambda conn: tracking.set_stage(conn, first.run_id, "deleted", 2),
            lambda conn: runs.log(conn, first.run_id, tags={"mlflow.runName": "other"}),
        ):
            with pytest.raises(Refused, match="case 1"):
                keep.db.write(change)
