"""A table that does not fit into the budget is prepared piece by piece, on the engine, to the same end."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from modelkeep.core.errors import Refused
from modelkeep.core.here import Here
from modelkeep.data import pieces
from modelkeep.formats import runtimes, skops_io
from modelkeep.formats.signature import Signature
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.packages import files_of
from modelkeep.lifecycle.tables import BlobParts, open_table, parts_of
from modelkeep.registry import models
from modelkeep.store import stages
from modelkeep.store.blobs import open_blobs
from small import Project


@pytest.fixture
def table(project: Project) -> Project:
    for number in range(3):
        project.write(f"part{number}", 7000, first=7000 * number)
    project.said["gates"] = []
    project.declare()
    return project


def prepared(project: Project) -> dict:
    with project.opened() as keep, keep.db.read() as conn:
        found = stages.latest(conn, "late", "prepare")
    assert found is not None
    return found[1]


def test_pieces_end_where_one_table_does(table: Project, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table.apply()
    first = prepared(table)
    other = Project(tmp_path / "other", table.said)
    for path in sorted((table.folder / "data").iterdir()):
        target = other.folder / "data" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    other.declare()
    size = 21_000 * 37
    monkeypatch.setenv("MODELKEEP_MEMORY", str(int(size * 3 * 0.85)))
    monkeypatch.setattr(pieces, "LEAST", 100_000)
    again = other.apply()
    second = prepared(other)
    # The rows watched for drift are a sample of every second; what can be summed is of all frozen rows.
    assert again.metrics == pytest.approx(whole.metrics, abs=1e-6)
    assert second["rows"] == first["rows"]
    with table.opened() as keep, other.opened() as others:
        parts = parts_of(others.blobs, second["train"])
        assert len(parts) > 1
        assert sum(part.rows for part in parts) == second["rows"][0]
        for side in ("train", "test"):
            assert open_table(others.blobs, second[side]).equals(open_table(keep.blobs, first[side]))
        assert signature(others, again.version) == signature(keep, whole.version)


def signature(keep: Keep, version: int | None) -> Signature:
    with keep.db.read() as conn:
        return runtimes.signature(files_of(keep.blobs, models.version(conn, "late", version or 0).package))


def test_a_linear_model_is_learnt_from_the_parts(table: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_MEMORY", "1MB")
    monkeypatch.setattr("modelkeep.app.wiring._engine", lambda *_: Here())
    monkeypatch.setattr(pieces, "LEAST", 100_000)
    params = {"alpha": 1e-5, "passes": 4, "method": "all_reduce"}
    table.declare(lambda said: said.update(train={"algorithm": "linear_out_of_core", "params": params}))
    read = []
    monkeypatch.setattr(
        "modelkeep.lifecycle.making.open_table", lambda *_: read.append(1) or pytest.fail("held whole")
    )
    done = table.apply()
    assert read == []
    with table.opened() as keep, keep.db.read() as conn:
        trained = stages.latest(conn, "late", "train")[1]
        assert len(parts_of(keep.blobs, stages.latest(conn, "late", "prepare")[1]["train"])) > 1
        kept = skops_io.loads(keep.blobs.read(trained["pipeline"]))
        assert runtimes.signature(files_of(keep.blobs, models.version(conn, "late", done.version).package))
    assert trained["classes"] == [0, 1]
    # As scikit-learn's solver ends on all rows at once, which the same features were fitted on.
    with table.opened() as keep:
        rows = open_table(keep.blobs, prepared(table)["train"]).to_pandas()
        features = kept.named_steps["features"].transform(rows[list(prepared(table)["inputs"])])
    peer = LogisticRegression(C=1 / (1e-5 * len(rows)), tol=1e-8, max_iter=1000).fit(features, rows["late"])
    assert kept.named_steps["model"].predict_proba(features)[:, 1] == pytest.approx(
        peer.predict_proba(features)[:, 1], abs=0.01
    )


def test_what_needs_all_rows_says_how_much_they_are(table: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_MEMORY", "1MB")
    monkeypatch.setattr("modelkeep.app.wiring._engine", lambda *_: Here())
    monkeypatch.setattr(pieces, "LEAST", 100_000)
    with pytest.raises(
        Refused, match=r"logistic_regression needs all 14,\d+ training rows in memory: 0\.5 MB, 3 times over"
    ) as told:
        table.apply()
    assert "MODELKEEP_MEMORY" in told.value.hint
    with table.opened() as keep, keep.db.read() as conn:
        assert models.models(conn) == []


def test_what_hardly_repeats_is_kept_without_a_dictionary_and_every_type_is_kept(tmp_path: Path) -> None:
    keeper = BlobParts(open_blobs(str(tmp_path)))
    rows = range(1000)
    table = pa.table(
        {
            "key": [f"k{row}" for row in rows],
            "at": pa.array(rows, pa.timestamp("us")),
            "kind": [f"v{row % 9}" for row in rows],
            "nothing": pa.nulls(1000),
            "coded": pa.array([f"w{row % 3}" for row in rows]).dictionary_encode(),
            "list": [[row] for row in rows],
            "struct": [{"a": row} for row in rows],
            "bytes": [b"%d" % row for row in rows],
        }
    )
    kept = keeper.keep(table)
    assert keeper.read(kept, None).equals(table)
    with keeper.blobs.open(kept.digest) as stream:
        group = pq.ParquetFile(pa.BufferReader(stream.read())).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).has_dictionary_page for i in range(3)}
    assert found == {"key": False, "at": False, "kind": True}
