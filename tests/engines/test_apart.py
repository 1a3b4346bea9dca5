"""Local paths on an engine of which one machine has other disks: told before work, nothing is written there."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from engines.clusters import apart_cluster, may_hide
from modelkeep.app.wiring import open_keep
from modelkeep.core.errors import Refused
from modelkeep.core.ports import Engine, Silent
from modelkeep.data import sharing, taking
from modelkeep.data.snapshots import Snapshots
from modelkeep.engines.opening import open_engine
from modelkeep.lifecycle.apply import apply
from modelkeep.lifecycle.scoring import Scored, Scoring
from modelkeep.registry import models
from modelkeep.store.blobs import read_files
from small import Project, until

pytestmark = pytest.mark.cluster


class Site(NamedTuple):
    """A cluster of two machines.

    Attributes:
        hidden: A folder that one of them does not see.
        shared: One that both see.
    """

    address: str
    engine: Engine
    hidden: Path
    shared: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not may_hide():
        pytest.skip("this machine does not allow other disks for a process (unshare --mount)")
    root = tmp_path_factory.mktemp("apart")
    hidden, shared = root / "hidden", root / "shared"
    for folder in (hidden, shared, root / "cluster"):
        folder.mkdir()
    with apart_cluster(root / "cluster", hidden) as address, open_engine(address, limit=120) as engine:
        until(lambda: engine.slots() == 2)
        yield Site(address, engine, hidden, shared)


@pytest.fixture(scope="module")
def project(site: Site) -> Project:
    """With a version, made on this machine."""
    made = Project(site.shared / "project")
    made.write("part0", 400)
    made.write("part1", 400, first=400)
    made.declare()
    keep = open_keep(made.folder)
    try:
        assert apply(keep, made.declaration()).champion
    finally:
        keep.close()
    return made


def rows(folder: Path) -> Path:
    """Twelve parts."""
    folder.mkdir(exist_ok=True)
    for part in range(12):
        with (folder / f"{part}.csv").open("w") as file:
            csv.writer(file).writerows([("x", "z", "place"), (part, 0.5, "a"), (0.1, 0.2, "b")])
    return folder


def score(site: Site, project: Project, source: Path, out: Path) -> Scored:
    keep = open_keep(project.folder)
    try:
        with keep.db.read() as conn:
            version = models.version(conn, "late", "champion")
        scoring = Scoring(str(source), str(out), Path("/"), version="late@1", package=version.package)
        return scoring.run(read_files(keep.blobs, version.package), site.engine, Silent())
    finally:
        keep.close()


def test_what_all_machines_see_is_scored_and_no_mark_stays(site: Site, project: Project) -> None:
    out = site.shared / "scored"
    done = score(site, project, rows(site.shared / "rows"), out)
    assert (done.parts, done.rows) == (12, 24)
    assert len(list(out.glob("*.csv"))) == 12
    assert not list(out.rglob(".modelkeep*"))


@pytest.mark.parametrize("late", [False, True])
def test_an_output_that_a_machine_does_not_see_is_refused(
    site: Site, project: Project, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a machine that was not there when all were asked."""
    if late:
        monkeypatch.setattr(sharing, "ask", lambda *_: None)
    out = site.hidden / f"scored-{late}"
    with pytest.raises(Refused, match=rf"--out: {out} .* worker on other .* No such file") as told:
        score(site, project, rows(site.shared / "rows"), out)
    assert "object store" in told.value.hint
    assert not list(out.rglob(".modelkeep*"))
    assert not (out / "_modelkeep.json").exists()
    if not late:
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
def test_an_input_that_a_machine_does_not_see_is_refused(
    site: Site, project: Project, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if late:
        monkeypatch.setattr(sharing, "ask", lambda *_: None)
    with pytest.raises(Refused, match=rf"--in: {site.hidden}/rows/\d+\.csv .* worker on other .* No such file"):
        score(site, project, rows(site.hidden / "rows"), site.shared / f"of-hidden-{late}")


@pytest.mark.parametrize("late", [False, True])
def test_a_source_that_a_machine_does_not_see_is_refused(
    site: Site, project: Project, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "MUCH", 0)
    if late:
        monkeypatch.setattr(sharing, "ask", lambda *_: None)
    keep = open_keep(project.folder)
    data = project.declaration().data
    try:
        taken = {}
        for name, folder in (("shared", site.shared), ("hidden", site.hidden)):
            given = type(data)(source=f"{rows(folder / 'source')}", target="z")
            taken[name] = lambda given=given, name=name: Snapshots(keep.db, keep.blobs).take(
                given, name, Path("/"), 1.0, engine=lambda: site.engine
            )
        assert taken["shared"]().rows == 24
        with pytest.raises(Refused, match=rf"data\.source: {site.hidden}/source/\d+\.csv .* worker on other"):
            taken["hidden"]()
        assert Snapshots(keep.db, keep.blobs).latest("hidden") is None
    finally:
        keep.close()


def test_blobs_that_a_machine_does_not_see_are_refused(site: Site) -> None:
    made = Project(site.shared / "blobs-apart")
    made.write("part0", 300)
    blobs = site.hidden / "blobs"
    made.said |= {"engine": site.address, "blobs": str(blobs)}
    made.declare()
    keep = open_keep(made.folder, blobs=str(blobs))
    try:
        with pytest.raises(Refused, match=rf"blobs: {blobs} on this machine .* worker on other"):
            apply(keep, made.declaration())
    finally:
        keep.close()
    assert list((blobs / "drafts").iterdir()) == []
