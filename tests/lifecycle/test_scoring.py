"""Batch scoring: formats, places, restarts, kills, bad rows, bounded memory; the answers are the model's own."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pytest
from click.testing import CliRunner
from obstore.store import from_url
from pyarrow import csv, feather, parquet
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from forks import Forks
from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.core.digests import of_value
from modelkeep.core.errors import Invalid, NotFound, Unavailable
from modelkeep.core.ports import Silent
from modelkeep.engines.local import LocalEngine
from modelkeep.formats import inference, package
from modelkeep.lifecycle import locks, scoring_part
from modelkeep.lifecycle.scoring import Scored, Scoring
from modelkeep.registry import models
from modelkeep.store.blobs import put_tree

INPUTS = ["distance", "code", "night"]


def rows(count: int, seed: int = 0) -> pa.Table:
    """Numbers with gaps, codes that look like numbers, truth values, and a key that the model does not take."""
    rng = np.random.default_rng(seed)
    distance = rng.normal(1000, 300, count)
    return pa.table(
        {
            "id": pa.array([f"{seed}-{row}" for row in range(count)]),
            "distance": pa.array(distance, mask=rng.random(count) < 0.1),
            "code": rng.choice(["007", "12", "é"], count),
            "night": rng.random(count) < 0.5,
        }
    )


class Trained:
    """A model with its package."""

    def __init__(self) -> None:
        table = rows(300)
        frame = table.select(INPUTS).to_pandas()
        late = np.where(frame.distance.fillna(1000) + 300 * (frame.code == "007") > 1100, "late", "punctual")
        steps = ColumnTransformer(
            [
                ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["distance"]),
                ("c", OneHotEncoder(handle_unknown="ignore"), ["code"]),
                ("b", "passthrough", ["night"]),
            ]
        )
        self.pipeline = Pipeline([("features", steps), ("model", LogisticRegression())]).fit(frame, late)
        told = inference.infer(table, INPUTS, "classification", ["late", "punctual"])
        self.files: Mapping[str, bytes] = package.build(
            self.pipeline, told, table.select(INPUTS).slice(0, 50)
        ).files

    def right(self, answered: pa.Table, given: pa.Table) -> None:
        """Whether these are the model's answers to the rows given."""
        frame = given.select(INPUTS).to_pandas()
        assert answered.column("label").to_pylist() == self.pipeline.predict(frame).tolist()
        probability = self.pipeline.predict_proba(frame)
        for place, name in enumerate(["late", "punctual"]):
            assert np.allclose(answered.column(f"probability_{name}").to_numpy(), probability[:, place], atol=1e-5)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


Score = Callable[..., Scored]


@pytest.fixture
def score(tmp_path: Path, trained: Trained) -> Score:
    def scored(
        source: str = "in", out: str = "out", *, digest: str = "d1", workers: int = 1, **more: Any
    ) -> Scored:
        scoring = Scoring(source, out, tmp_path, version="m@1", package=digest, **more)
        with LocalEngine(workers) as engine:
            return scoring.run(trained.files, engine, Silent())

    return scored


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".csv":
            csv.write_csv(table, path)
        case ".parquet":
            parquet.write_table(table, path, row_group_size=1000)
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in table.to_pylist()))
        case ".arrow":
            feather.write_feather(table, path)


def read(path: Path) -> pa.Table:
    match path.suffix:
        case ".csv":
            texts = {"code": pa.string(), "id": pa.string()}
            return csv.read_csv(
                path, convert_options=csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
            )
        case ".parquet":
            return parquet.read_table(path)
        case ".jsonl":
            return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])
    return feather.read_table(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".arrow"])
def test_every_format_gives_the_models_own_answers(
    tmp_path: Path, trained: Trained, score: Score, suffix: str
) -> None:
    parts = {f"a/one{suffix}": rows(2500, 1), f"two{suffix}": rows(3, 2)}
    for name, table in parts.items():
        write(table, tmp_path / "in" / name)
    assert score() == Scored("m@1", "d1", parts=2, reused=0, rows=2503, skipped=0)
    for name, table in parts.items():
        answered = read(tmp_path / "out" / name)
        assert answered.column_names == [*table.column_names, "label", "probability_late", "probability_punctual"]
        assert answered.column("id").to_pylist() == table.column("id").to_pylist()
        assert answered.column("code").to_pylist() == table.column("code").to_pylist()
        trained.right(answered, table)
    assert json.loads((tmp_path / "out" / "_modelkeep.json").read_text())["rows"] == 2503


def test_another_format_a_glob_and_one_file(tmp_path: Path, trained: Trained, score: Score) -> None:
    for seed in range(3):
        write(rows(20, seed), tmp_path / "in" / f"p{seed}.csv")
    write(rows(20, 9), tmp_path / "in" / "other.parquet")
    assert score("in/p*.csv", suffix=".parquet").parts == 3
    trained.right(read(tmp_path / "out" / "p2.parquet"), rows(20, 2))
    assert score("in/p1.csv", "single").parts == 1
    assert (tmp_path / "single" / "p1.csv").exists()
    assert score(str(tmp_path / "in" / "p1.csv"), "in/within").parts == 1


def test_processes_give_the_same_in_parallel(tmp_path: Path, trained: Trained, score: Score) -> None:
    for seed in range(4):
        write(rows(50, seed), tmp_path / "in" / f"{seed}.parquet")
    assert score(workers=2).rows == 200
    for seed in range(4):
        trained.right(read(tmp_path / "out" / f"{seed}.parquet"), rows(50, seed))


def test_only_what_changed_is_scored_again(tmp_path: Path, score: Score) -> None:
    for seed in range(3):
        write(rows(10, seed), tmp_path / "in" / f"{seed}.csv")
    assert score().reused == 0
    before = (tmp_path / "out" / "1.csv").stat().st_mtime_ns
    assert score().reused == 3
    write(rows(12, 7), tmp_path / "in" / "0.csv")
    write(rows(5, 8), tmp_path / "in" / "new.csv")
    assert score() == Scored("m@1", "d1", parts=4, reused=2, rows=37, skipped=0)
    assert (tmp_path / "out" / "1.csv").stat().st_mtime_ns == before
    assert score(digest="d2").reused == 0
    assert score(digest="d2", on_error="skip").reused == 0
    (tmp_path / "out" / "_parts" / "2.csv.json").write_text("{half")
    assert score(digest="d2", on_error="skip").reused == 3


def test_a_bad_row_ends_the_run_by_name_and_the_next_goes_on(tmp_path: Path, score: Score) -> None:
    for name in ("a", "b", "c"):
        write(rows(10, ord(name)), tmp_path / "in" / f"{name}.csv")
    bad = rows(10).to_pylist()
    bad[7]["code"] = None
    write(pa.Table.from_pylist(bad), tmp_path / "in" / "b.csv")
    with pytest.raises(Invalid, match="skip") as found:
        score()
    (problem,) = found.value.problems
    assert problem.path == "inputs.code[7]"
    assert problem.file.endswith("in/b.csv")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_parts", "a.csv"]
    write(rows(10), tmp_path / "in" / "b.csv")
    assert score().reused == 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_bad_rows_are_put_aside_with_the_reason(
    tmp_path: Path, trained: Trained, score: Score, suffix: str
) -> None:
    table = rows(3000, 5)
    listed = table.to_pylist()
    wrong = {3: "code", 1500: "night", 2999: "code", **dict.fromkeys(range(100, 180), "code")}
    for row, name in wrong.items():
        listed[row][name] = None
    write(pa.Table.from_pylist(listed, table.schema), tmp_path / "in" / f"x{suffix}")
    assert score(on_error="skip") == Scored("m@1", "d1", parts=1, reused=0, rows=3000 - 83, skipped=83)
    lines = (tmp_path / "out" / "_quarantine" / f"x{suffix}.jsonl").read_text().splitlines()
    aside = {line["row"]: line for line in map(json.loads, lines)}
    assert aside.keys() == wrong.keys()
    assert all(f"inputs.{name}" in aside[row]["reason"] for row, name in wrong.items())
    assert aside[3]["id"] == "5-3"
    kept = [row for row in range(3000) if row not in wrong]
    trained.right(read(tmp_path / "out" / f"x{suffix}"), table.take(kept))
    write(table, tmp_path / "in" / f"x{suffix}")
    assert score(on_error="skip").skipped == 0
    assert not (tmp_path / "out" / "_quarantine" / f"x{suffix}.jsonl").exists()


def test_values_that_are_no_numbers_do_not_spoil_their_column(
    tmp_path: Path, trained: Trained, score: Score
) -> None:
    table = rows(500, 6)
    lines = ["id,distance,code,night"]
    for row in table.to_pylist():
        distance = "" if row["distance"] is None else repr(row["distance"])
        lines.append(f"{row['id']},{distance},{row['code']},{str(row['night']).lower()}")
    for row, (column, value) in {4: (1, "far"), 9: (3, "maybe"), 11: (1, "1e999")}.items():
        fields = lines[row + 1].split(",")
        fields[column] = value
        lines[row + 1] = ",".join(fields)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.csv").write_text("\n".join(lines))
    with pytest.raises(Invalid, match="distance"):
        score()
    assert score(on_error="skip").skipped == 3
    aside = (tmp_path / "out" / "_quarantine" / "x.csv.jsonl").read_text()
    assert [json.loads(line)["row"] for line in aside.splitlines()] == [4, 9, 11]
    assert "found 'far', expected a number" in aside
    answered = read(tmp_path / "out" / "x.csv")
    trained.right(answered, table.take([row for row in range(500) if row not in (4, 9, 11)]))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_pieces_of_a_file_need_not_look_alike(
    tmp_path: Path, trained: Trained, score: Score, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """Whole numbers, then none at all, then fractions, each a piece of its own."""
    monkeypatch.setattr(scoring_part, "PIECE", 1000)
    table = rows(300, 8)
    distance = [
        float(round(value)) if value and row < 100 else value for row, value in enumerate(table[1].to_pylist())
    ]
    distance[100:200] = [None] * 100
    table = table.set_column(1, "distance", pa.array(distance))
    (tmp_path / "in").mkdir()
    lines = ["id,distance,code,night"]
    for row in table.to_pylist():
        shown = "" if row["distance"] is None else f"{row['distance']:.17g}"
        lines.append(f"{row['id']},{shown},{row['code']},{str(row['night']).lower()}")
    (tmp_path / "in" / "x.csv").write_text("\n".join(lines))
    for suffix in (".csv", ".parquet"):
        assert score(on_error=on_error, suffix=suffix).rows == 300
        answered = read(tmp_path / "out" / f"x{suffix}")
        trained.right(answered, table)
        assert answered.column("distance").to_pylist() == distance


def test_parts_that_hold_only_bad_rows_or_none(tmp_path: Path, score: Score) -> None:
    table = rows(30)
    nothing = table.set_column(2, "code", pa.nulls(30, pa.string()))
    write(nothing, tmp_path / "in" / "bad.parquet")
    write(table.slice(0, 0), tmp_path / "in" / "empty.parquet")
    (tmp_path / "in" / "empty.csv").touch()
    assert score(on_error="skip") == Scored("m@1", "d1", parts=3, reused=0, rows=0, skipped=30)
    for name in ("bad", "empty"):
        answered = parquet.read_table(tmp_path / "out" / f"{name}.parquet")
        assert answered.num_rows == 0
        assert answered.schema.field("label").type == pa.string()
        assert answered.schema.field("probability_late").type == pa.float64()


def test_what_the_model_does_not_take_comes_out_as_it_went_in(tmp_path: Path, score: Score) -> None:
    (tmp_path / "in").mkdir()
    lines = [
        "id,distance,code,night,note",
        "007,1.50,007,true,1",
        "x,2,12,false,many",
        "1e3,3.0,12,true,2",
        "4,5,é,true,",
    ]
    (tmp_path / "in" / "a.csv").write_text("\n".join(lines))
    score()
    answered = csv.read_csv(
        tmp_path / "out" / "a.csv",
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(("id", "code", "note"), pa.string())),
    )
    assert answered.column("id").to_pylist() == ["007", "x", "1e3", "4"]
    assert answered.column("code").to_pylist() == ["007", "12", "12", "é"]
    assert answered.column("note").to_pylist() == ["1", "many", "2", ""]


def test_what_cannot_be_scored_is_said(tmp_path: Path, score: Score) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        score("nowhere")
    write(rows(5), tmp_path / "in" / "a.csv")
    for out in ("in", "in/scored", "./in/../in/x"):
        with pytest.raises(Invalid, match="lies inside"):
            score(out=out)
    with pytest.raises(Invalid, match="is a file"):
        score(out="in/a.csv")
    with pytest.raises(Unavailable, match="cannot write"):
        score(out="/proc/scored")
    with pytest.raises(Invalid, match="no format"):
        score(suffix=".xlsx")
    write(rows(5), tmp_path / "in" / "a.parquet")
    with pytest.raises(Invalid, match=r"'a.csv' and 'a.parquet' would both be written to 'a.jsonl'"):
        score(suffix=".jsonl")
    write(rows(5).drop_columns(["code"]), tmp_path / "in" / "a.parquet")
    for on_error in ("fail", "skip"):
        with pytest.raises(Invalid, match="code") as found:
            score(on_error=on_error)
        assert found.value.problems[0].file.endswith("a.parquet")
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(Invalid, match="cannot be read as Parquet"):
        score()


def test_names_that_clash_and_types_of_all_kinds(tmp_path: Path, trained: Trained, score: Score) -> None:
    table = rows(10).append_column("label", pa.array(range(10)))
    table = table.append_column("day", pa.array([datetime.date(2026, 1, 1)] * 10))
    table = table.append_column("none", pa.nulls(10))
    write(table, tmp_path / "in" / "ünï cødé.parquet")
    score()
    answered = parquet.read_table(tmp_path / "out" / "ünï cødé.parquet")
    assert answered.column("label").to_pylist() == list(range(10))
    trained.right(answered.drop_columns(["label"]).rename_columns({"predicted_label": "label"}), table)
    score(suffix=".jsonl", out="lines")
    assert json.loads((tmp_path / "lines" / "ünï cødé.jsonl").read_text().splitlines()[0])["day"] == "2026-01-01"


PROGRAM = """
import sys
from pathlib import Path
import pyarrow
from modelkeep.core.ports import Silent
from modelkeep.engines.local import LocalEngine
from modelkeep.formats.manifest import Folder
from modelkeep.lifecycle.scoring import Scoring

if __name__ == "__main__":
    base, source, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    files = Folder(base / "package")
    with LocalEngine(workers) as engine:
        scoring = Scoring(source, "out", base, version="m@1", package="d1")
        scoring.run({name: files[name] for name in files}, engine, Silent())
    print(pyarrow.default_memory_pool().max_memory())
"""


@pytest.fixture
def program(tmp_path: Path, trained: Trained) -> Iterator[Callable[[str, int], subprocess.Popen[str]]]:
    """Scores in a process of its own: source, workers."""
    for name, data in trained.files.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def started(source: str, workers: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path), source, str(workers)]
        env = {**os.environ, "TMPDIR": scratch}
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True, env=env)

    # what a killed one leaves behind; short, for sockets are in it
    with tempfile.TemporaryDirectory(prefix="scoring-") as scratch:
        yield started


def test_a_killed_run_leaves_whole_parts_and_is_taken_up(
    tmp_path: Path, trained: Trained, score: Score, program: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    parts = 60
    for seed in range(parts):
        write(rows(4000, seed), tmp_path / "in" / f"{seed:02}.csv")
    process = program("in", 2)
    records = tmp_path / "out" / "_parts"
    end = time.monotonic() + 60
    while len(list(records.glob("*.json"))) < 5:
        assert time.monotonic() < end
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = len(list(records.glob("*.json")))
    assert not (tmp_path / "out" / "_modelkeep.json").exists()
    for path in (tmp_path / "out").glob("[0-9]*.csv"):
        assert read(path).num_rows == 4000  # whatever is under its name is whole
    done = score()
    assert (done.parts, done.rows) == (parts, parts * 4000)
    assert done.reused >= finished
    trained.right(read(tmp_path / "out" / "59.csv"), rows(4000, 59))
    assert not list((tmp_path / "out").glob(".*"))


def test_memory_stays_flat_however_many_rows(
    tmp_path: Path, program: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    table = rows(250_000)
    with parquet.ParquetWriter(tmp_path / "big.parquet", table.schema) as writer:
        for _ in range(8):
            writer.write_table(table, row_group_size=50_000)
    held, _ = program("big.parquet", 1).communicate(timeout=120)
    assert parquet.read_metadata(tmp_path / "out" / "big.parquet").num_rows == 2_000_000
    # what Arrow held at its worst: less than the rows alone would take, which are a part of what was written
    assert int(held) < 8 * table.nbytes / 2


def test_parts_on_an_object_store(tmp_path: Path, trained: Trained, score: Score, s3: str) -> None:
    store, prefix = from_url(s3.rpartition("/")[0]), s3.rpartition("/")[2]
    for seed in range(3):
        write(rows(40, seed), tmp_path / "p.parquet")
        obstore.put(store, f"{prefix}/in/day={seed}/p.parquet", (tmp_path / "p.parquet").read_bytes())
    obstore.put(store, f"{prefix}/in/_SUCCESS.csv", b"no part")
    assert score(f"{s3}/in", f"{s3}/out") == Scored("m@1", "d1", parts=3, reused=0, rows=120, skipped=0)
    for seed in range(3):
        data = obstore.get(store, f"{prefix}/out/day={seed}/p.parquet").bytes()
        trained.right(parquet.read_table(pa.BufferReader(bytes(data))), rows(40, seed))
    assert score(f"{s3}/in/", f"{s3}/out/").reused == 3
    write(rows(7, 9), tmp_path / "p.csv")
    obstore.put(store, f"{prefix}/in/day=0/q.csv", (tmp_path / "p.csv").read_bytes())
    assert score(f"{s3}/in", f"{s3}/out").reused == 3
    assert score(f"{s3}/in/*/q.csv", str(tmp_path / "here")).rows == 7
    trained.right(read(tmp_path / "here" / "day=0" / "q.csv"), rows(7, 9))
    assert score(f"{s3}/in/day=0/q.csv", f"{s3}/single").parts == 1
    with pytest.raises(NotFound):
        score(f"{s3}/nothing", f"{s3}/out")
    with pytest.raises(Invalid, match="lies inside"):
        score(f"{s3}/in", f"{s3}/in/out")


@pytest.fixture
def champion(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home whose champion of ``m`` is the model."""
    for name in ("MODELKEEP_HOME", "MODELKEEP_DATABASE", "MODELKEEP_BLOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    keep = open_keep(tmp_path)
    digest = put_tree(keep.blobs, trained.files)

    def register(conn: Any) -> None:
        models.register(
            conn, "m", run_id="", package=digest, lineage=None, evaluation={}, runtime="onnx", note="", now=1.0
        )
        models.set_alias(conn, "m", "champion", 1, 1.0)

    keep.db.write(register)
    keep.close()


def command(forks: Forks, *words: str) -> subprocess.CompletedProcess[str]:
    line = [str(forks.commands / "modelkeep"), "predict", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.usefixtures("champion")
@pytest.mark.slow
def test_the_command_scores_an_object_store_in_processes(
    trained: Trained, s3: str, forks: Forks, tmp_path: Path
) -> None:
    store, prefix = from_url(s3.rpartition("/")[0]), s3.rpartition("/")[2]
    for seed in range(3):
        write(rows(40, seed), tmp_path / "p.csv")
        obstore.put(store, f"{prefix}/in/{seed}.csv", (tmp_path / "p.csv").read_bytes())
    words = ("m@champion", "--in", f"{s3}/in", "--out", f"{s3}/out", "--format", "parquet", "--workers", "2")
    done = command(forks, *words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["parts"], told["rows"], told["out"]) == ("m@1", 3, 120, f"{s3}/out")
    data = obstore.get(store, f"{prefix}/out/2.parquet").bytes()
    trained.right(parquet.read_table(pa.BufferReader(bytes(data))), rows(40, 2))
    again = command(forks, *words)
    assert "scored 120 rows of 3 parts with m@1, 3 of them before" in again.stdout


@pytest.mark.usefixtures("champion")
def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    def told(*words: str) -> tuple[int, str]:
        found = CliRunner().invoke(cli, ["predict", "m", *words, "--json"])
        return found.exit_code, found.stdout

    bad = rows(20).set_column(2, "code", pa.array([None, *["12"] * 19]))
    write(bad, tmp_path / "in" / "a.csv")
    code, said = told("--in", "in", "--out", "out")
    assert code == 2
    assert json.loads(said)["error"]["problems"][0]["path"] == "inputs.code[0]"
    where = str((tmp_path / "out").resolve())
    with locks.held(tmp_path / ".modelkeep", f"score-{of_value(where)[:16]}", doing="scoring"):
        assert told("--in", "in", "--out", "out")[0] == 1  # somebody else writes there
    code, said = told("--in", "in", "--out", "out", "--on-error", "skip", "--workers", "1")
    assert (code, json.loads(said)["skipped"]) == (0, 1)
    assert told("--in", "in")[0] == told("--in", "in", "in/a.csv", "--out", "out")[0] == 2
    assert told("--in", "nowhere", "--out", "out")[0] == 3
