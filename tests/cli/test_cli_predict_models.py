"""``modelkeep predict`` with models of tensors, with weights beside their graph, and without a signature."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from graph_kit import graph_folder
from tensor_cases import blend, digits, images, scores
from verbatim_cases import unsigned

from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.registry import endpoints, models
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.store.blobs import put_tree


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    large = graph_folder(folder / "large", 2.0, 1, external=True)
    cases: dict[str, tuple[Mapping[str, bytes], Sequence[str]]] = {
        "large": ({path: large[path] for path in large}, ()),
        **{case.__name__: (case().files, case().trusted) for case in (digits, blend, unsigned)},
    }
    keep = open_keep(folder)
    for name, (files, trusted) in cases.items():
        package = put_tree(keep.blobs, dict(files))
        route = Route(version=1, package=package, weight=1.0, mode="stable")
        wanted = Wanted(endpoint=name, model=name, routes=(route,), settings={"trust": list(trusted)})

        def register(conn: Any, name: str = name, package: str = package, wanted: Wanted = wanted) -> None:
            about = {"run_id": "", "lineage": None, "evaluation": {}, "runtime": "graph", "note": "", "now": 1.0}
            models.register(conn, name, package=package, **about)  # type: ignore[arg-type]
            models.set_alias(conn, name, "champion", 1, 1.0)
            endpoints.put(conn, wanted)

        keep.db.write(register)
    keep.close()
    return folder


@pytest.fixture(autouse=True)
def _there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MODELKEEP_HOME", raising=False)
    monkeypatch.chdir(home)
    return


def told(*words: str, code: int = 0) -> Any:
    found = CliRunner().invoke(cli, ["predict", *words, "--json"])
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


def test_images_in_files_of_lists() -> None:
    X = images(5)
    parquet.write_table(pa.table({"x": X.tolist()}), "x.parquet")
    Path("x.jsonl").write_text("\n".join(json.dumps({"x": one.tolist()}) for one in X))
    for file in ("x.parquet", "x.jsonl"):
        assert np.allclose(told("digits", file)["predictions"]["score"], scores(X), atol=1e-3)
    told("digits", "--in", "x.parquet", "--out", "scored")
    scored = parquet.read_table("scored/x.parquet")
    assert np.allclose(scored.column("score").to_numpy(), scores(X), atol=1e-3)
    assert scored.column("x").to_pylist() == X.tolist()


def test_a_tensor_of_one_row_as_json_and_one_in_the_answer() -> None:
    pixels = np.arange(6.0).reshape(1, 2, 3)
    words = [
        "-v",
        f"pixels={pixels.tolist()}",
        "-v",
        "weight=2",
        "-v",
        'words=["a", "b"]',
        "--out",
        "blend.parquet",
    ]
    found = told("blend", *words)["predictions"]
    assert found == {"picture": (pixels * 2).tolist(), "words": [["b", "a"]]}
    assert parquet.read_table("blend.parquet").column("picture").to_pylist() == (pixels * 2).tolist()


def test_rows_of_another_shape_are_refused() -> None:
    parquet.write_table(pa.table({"x": [[1.0], [1.0, 2.0]]}), "ragged.parquet")
    parquet.write_table(pa.table({"x": [[[1.0]], None]}), "gap.parquet")
    for words in (["-v", "x=[1, 2]"], ["-v", "x=1"], ["ragged.parquet"], ["gap.parquet"]):
        error = told("digits", *words, code=2)["error"]
        assert "inputs.x[0]" in error["message"] and "expected shape [28, 28]" in error["message"]
    assert "as JSON" in told("digits", "-v", "x=[1", code=2)["error"]["message"]


def test_weights_that_lie_beside_their_graph() -> None:
    assert told("large", "-v", "a=1", "-v", "b=2")["predictions"] == {"y": [[6.0]]}
    Path("ab.csv").write_text("a,b\n1,2\n3,4\n")
    assert told("large", "ab.csv")["predictions"] == {"y": [[6.0], [14.0]]}
    assert told("large", "--in", "ab.csv", "--out", "large-scored", "--format", "jsonl")["rows"] == 2


def test_a_model_without_a_signature_takes_whole_requests_and_says_so() -> None:
    Path("ab.csv").write_text("a,b\n1,2\n")
    for words in (["ab.csv"], ["-v", "a=1"], ["--in", "ab.csv", "--out", "unsigned-scored"]):
        error = told("unsigned", *words, code=2)["error"]
        assert "no signature" in error["message"]
        assert "request=" in error["hint"]
    request = {"inputs": {"a": [1, 2]}}
    answer = told("unsigned", "-v", f"request={json.dumps(request)}")["predictions"]["answer"]
    assert json.loads(answer[0]) == {"predictions": {"a": 3.0}}
