"""``modelkeep data`` over real files and real snapshots."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import csv, feather, parquet

from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.data.snapshots import Snapshots
from modelkeep.lifecycle.tables import keep_table
from modelkeep.store import objects, stages


def told(*words: str, code: int = 0) -> Any:
    found = CliRunner().invoke(cli, [*words, "--json"])
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


def run(*words: str) -> str:
    found = CliRunner().invoke(cli, list(words))
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MODELKEEP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modelkeep.yaml").write_text("model: m\ndata: {source: rows/*.csv, target: y, key: id}\n")
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "1.csv", range(100))
    return tmp_path


def write(path: Path, ids: range) -> None:
    rows = [f"{i},{i % 7}.5,{'ab'[i % 2]},{i % 2}" for i in ids]
    path.write_text("\n".join(["id,x,c,y", *rows]) + "\n")


def test_append_takes_only_what_is_new(folder: Path) -> None:
    first = told("data", "append")
    assert (first["rows"], first["new_rows"]) == (100, 100)
    assert told("data", "append") == {"digest": first["digest"], "rows": 100, "new_rows": 0}
    assert "nothing new" in run("data", "append")
    write(folder / "rows" / "2.csv", range(100, 130))
    assert told("data", "append")["new_rows"] == 30
    write(folder / "elsewhere.csv", range(200, 205))
    assert told("data", "append", "elsewhere.csv")["new_rows"] == 5
    assert [item["rows"] for item in told("data", "list")["snapshots"]] == [100, 130, 135]
    assert told("data", "append", "absent.csv", code=3)["error"]["kind"] == "not_found"
    assert "135" in run("data", "list", "m")


def test_show_by_name_and_by_digest(folder: Path) -> None:
    digest = told("data", "append")["digest"]
    found = told("data", "show", digest[:8])
    assert found["profile"]["columns"]["x"]["max"] == 6.5
    assert found == told("data", "show") == told("data", "show", "m")
    assert "100 rows" in run("data", "show")
    assert told("data", "show", "ffffffff", code=3)["error"]["kind"] == "not_found"


@pytest.mark.parametrize("by", ["hash", "range"])
def test_show_tells_of_skewed_buckets(folder: Path, by: str) -> None:
    """Half of the rows have one key."""
    rows = [f"{7 if i % 2 else i},{i},{i % 2}" for i in range(2000)]
    (folder / "rows" / "1.csv").write_text("\n".join(["key,id,y", *rows]) + "\n")
    cut = "partition: {{by: {}, columns: [{}], parts: 4}}"
    said = f"model: m\ndata: {{{{source: rows/*.csv, target: y, key: id, {cut}}}}}"
    (folder / "modelkeep.yaml").write_text(said.format(by, "key"))
    told("data", "append")
    found = told("data", "show")
    assert sum(found["buckets"].values()) == 2000 and len(found["buckets"]) == 4
    (one,) = found["skewed"]
    assert one["rows"] == max(found["buckets"].values()) == found["buckets"][str(one["bucket"])]
    assert one["share"] == one["rows"] / 2000 >= 0.5
    assert one["times"] == pytest.approx(4 * one["share"])
    shown = run("data", "show")
    assert f"4 buckets of {min(found['buckets'].values()):,} to {one['rows']:,} rows" in shown
    assert (
        f"bucket {one['bucket']} holds {one['share']:.0%} of the rows, {one['times']:.1f} times its share" in shown
    )
    (folder / "modelkeep.yaml").write_text(said.format(by, "id"))
    told("data", "append")
    assert told("data", "show")["skewed"] == []
    assert "times its share" not in run("data", "show")


def test_export_in_every_format(folder: Path) -> None:
    told("data", "append")
    for name in ("rows.parquet", "rows.csv", "rows.arrow", "rows.jsonl"):
        assert told("data", "export", "m", name) == {"file": name, "rows": 100}
    whole = parquet.read_table("rows.parquet")
    assert whole.column_names == ["id", "x", "c", "y"]
    assert feather.read_table("rows.arrow").equals(whole)
    assert csv.read_csv("rows.csv").to_pylist() == whole.to_pylist()
    lines = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert lines == whole.to_pylist()
    told("data", "export", "m", "two.csv", "--columns", "id, c")
    assert csv.read_csv("two.csv").column_names == ["id", "c"]
    assert "does not say the format" in told("data", "export", "m", "rows.xls", code=2)["error"]["message"]
    assert told("data", "export", "m", "no.csv", "--columns", "idd", code=2)["error"]["kind"] == "invalid"
    assert told("data", "export", "m", "absent/rows.csv", code=4)["error"]["kind"] == "unavailable"
    assert {path.name for path in folder.glob("*.new")} == set()


def test_export_as_a_delta_table(folder: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    told("data", "append")
    assert told("data", "export", "m", "lake/m", "--format", "delta") == {"file": "lake/m", "rows": 100}
    assert deltalake.DeltaTable("lake/m").to_pyarrow_table().sort_by("id").column("id").to_pylist() == [
        *range(100)
    ]
    assert "wrote 100 rows to lake/two" in run(
        "data", "export", "m", "lake/two", "--format", "delta", "--columns", "c,id"
    )
    assert deltalake.DeltaTable("lake/two").to_pyarrow_table().column_names == ["c", "id"]
    refused = told("data", "export", "m", "lake/m", "--format", "delta", code=1)["error"]
    assert refused["kind"] == "conflict" and "lake/m is a Delta table" in refused["message"]
    (folder / "modelkeep.yaml").write_text("model: n\ndata: {source: 'delta://lake/m@0', target: y, key: id}\n")
    assert told("data", "append")["rows"] == 100


def test_export_to_an_object_store(folder: Path, s3: str) -> None:
    deltalake = pytest.importorskip("deltalake")
    told("data", "append")
    assert told("data", "export", "m", f"{s3}/m.parquet") == {"file": f"{s3}/m.parquet", "rows": 100}
    (folder / "modelkeep.yaml").write_text(f"model: n\ndata: {{source: '{s3}/m.parquet', target: y, key: id}}\n")
    assert told("data", "append")["rows"] == 100
    assert told("data", "export", "m", f"{s3}/lake", "--format", "delta") == {"file": f"{s3}/lake", "rows": 100}
    found = deltalake.DeltaTable(f"{s3}/lake", storage_options=objects.settings(s3))
    assert found.to_pyarrow_table().num_rows == 100
    assert told("data", "export", "m", f"{s3}/lake", "--format", "delta", code=1)["error"]["kind"] == "conflict"
    assert told("data", "export", "m", "gopher://b/m.csv", code=2)["error"]["kind"] == "invalid"
    assert {path.name for path in folder.iterdir()} == {"modelkeep.yaml", "rows", ".modelkeep"}


def test_diff_by_key(folder: Path) -> None:
    first = told("data", "append")["digest"]
    write(folder / "rows" / "2.csv", range(100, 130))
    second = told("data", "append")["digest"]
    found = told("data", "diff", first[:10], "m")
    assert (found["before"], found["after"]) == (first, second)
    assert (found["rows"], found["rows_added"], found["rows_removed"], found["rows_changed"]) == (
        [100, 130],
        30,
        0,
        0,
    )
    assert "+ 30 rows added" in run("data", "diff", first[:10], second)


def test_init_writes_a_declaration_that_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELKEEP_HOME", raising=False)
    write(tmp_path / "rows.csv", range(200))
    assert told("init", "rows.csv")["file"] == "modelkeep.yaml"
    assert {stage["action"] for stage in told("plan")["stages"]} == {"run"}
    assert told("init", "rows.csv", code=1)["error"]["kind"] == "conflict"
    assert told("init", "rows.csv", "--force")["model"]
    told("init", "rows.csv", "--file", "models/other.yaml")
    assert {stage["action"] for stage in told("plan", "--file", "models/other.yaml")["stages"]} == {"run"}
    assert told("init", "absent.csv", "--force", code=3)["error"]["kind"] == "not_found"
    (tmp_path / "empty.csv").write_text("")
    assert told("init", "empty.csv", "--force", code=2)["error"]["kind"] == "invalid"


def test_quarantine(folder: Path) -> None:
    assert told("data", "quarantine", code=3)["error"]["hint"] == "run 'modelkeep apply' first"
    keep = open_keep(folder)
    rows = pa.table({"id": [7, 9], "reason": ["x is missing", "c was never seen"]})
    result = {"quarantine": keep_table(keep.blobs, rows)}
    keep.db.write(lambda conn: stages.remember(conn, "k", "prepare", "m", result, 1.0))
    keep.close()
    found = told("data", "quarantine", "--out", "failing.csv")
    assert (found["rows"], found["sample"][1]["reason"]) == (2, "c was never seen")
    assert csv.read_csv("failing.csv").num_rows == 2
    assert "x is missing" in run("data", "quarantine", "m")


def test_append_reads_on_the_declared_engine(folder: Path) -> None:
    (folder / "own_parts.py").write_text(
        "import os\nimport pyarrow as pa\n"
        "def rows(part):\n"
        "    return pa.table({'id': range(part * 9, part * 9 + 9), 'y': [0, 1, 2] * 3, 'p': [os.getpid()] * 9})\n"
    )
    (folder / "modelkeep.yaml").write_text(
        "model: m\ndata: {source: {function: 'own_parts:rows', parts: 3}, target: y, key: id}\n"
    )
    assert told("data", "append")["rows"] == 27
    keep = open_keep(folder)
    try:
        store = Snapshots(keep.db, keep.blobs)
        (latest,) = store.named("m")
        assert os.getpid() not in store.scan(latest).column("p").to_pylist()
    finally:
        keep.close()
