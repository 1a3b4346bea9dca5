"""``modelkeep predict`` with a real package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import csv, parquet
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.formats import inference, package
from modelkeep.registry import models
from modelkeep.store.blobs import put_tree


def told(*words: str, code: int = 0, stdin: bytes | None = None) -> Any:
    found = CliRunner().invoke(cli, [*words, "--json"], input=stdin)
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """A home whose champion predicts ``late`` from ``distance`` and ``carrier``; the rows it was fitted on."""
    monkeypatch.delenv("MODELKEEP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    distance = rng.normal(1000, 300, 200)
    carrier = rng.choice(["AA", "UA"], 200)
    late = np.where(distance + 300 * (carrier == "UA") > 1100, "late", "punctual")
    table = pa.table({"distance": distance, "carrier": carrier, "late": late})
    steps = ColumnTransformer([("n", StandardScaler(), ["distance"]), ("c", OneHotEncoder(), ["carrier"])])
    pipeline = Pipeline([("features", steps), ("model", LogisticRegression())])
    pipeline.fit(table.select(["distance", "carrier"]).to_pandas(), late)
    classes = [str(name) for name in pipeline.classes_]
    made = package.build(
        pipeline, inference.infer(table, ["distance", "carrier"], "classification", classes), table.slice(0, 50)
    )
    keep = open_keep(tmp_path)
    digest = put_tree(keep.blobs, made.files)

    def register(conn: Any) -> None:
        models.register(
            conn,
            "m",
            run_id="",
            package=digest,
            lineage=None,
            evaluation={},
            runtime=made.runtime,
            note="",
            now=1.0,
        )
        models.set_alias(conn, "m", "champion", 1, 1.0)

    keep.db.write(register)
    keep.close()
    return table


def test_a_file_of_rows(rows: pa.Table) -> None:
    parquet.write_table(rows, "rows.parquet")
    csv.write_csv(rows, "rows.csv")
    found = told("predict", "m", "rows.parquet")
    assert found["version"] == "m@1"
    assert found["rows"] == 200
    assert np.mean(np.array(found["predictions"]["label"]) == rows.column("late").to_numpy()) > 0.9
    assert set(found["predictions"]) == {"label", "probability_late", "probability_punctual"}
    assert told("predict", "m@champion", "rows.csv") == found
    lines = "\n".join(json.dumps(row) for row in rows.to_pylist()).encode()
    assert told("predict", "m@1", "-", stdin=lines)["predictions"] == found["predictions"]


def test_answers_beside_the_rows_in_a_file(rows: pa.Table) -> None:
    parquet.write_table(rows, "rows.parquet")
    told("predict", "m", "rows.parquet", "--out", "answers.parquet")
    answers = parquet.read_table("answers.parquet")
    assert answers.column_names == ["distance", "carrier", "label", "probability_late", "probability_punctual"]
    assert answers.num_rows == 200


def test_one_row_of_values(rows: pa.Table) -> None:
    found = told("predict", "m", "-v", "distance=2500", "-v", "carrier=UA")
    assert found["predictions"]["label"] == ["late"]
    printed = CliRunner().invoke(cli, ["predict", "m", "-v", "distance=10", "-v", "carrier=AA"])
    assert "punctual" in printed.output


def test_what_is_wrong_is_named(rows: pa.Table) -> None:
    problems = told("predict", "m", "-v", "distence=1", "-v", "carrier=UA", code=2)["error"]["problems"]
    assert "inputs.distence" in {problem["path"] for problem in problems}
    assert told("predict", "m", "-v", "distance=far", "-v", "carrier=UA", code=2)["error"]["kind"] == "invalid"
    assert told("predict", "m", code=2)["error"]["kind"] == "invalid"
    assert told("predict", "m@2", "-v", "distance=1", code=3)["error"]["kind"] == "not_found"
    Path("broken.csv").write_text("distance,carrier\n1,AA,3\n")
    assert told("predict", "m", "broken.csv", code=2)["error"]["kind"] == "invalid"
