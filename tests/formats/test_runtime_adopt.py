"""Model folders as anybody may write them: run safely, or refused with the reason; never run by accident."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runtime_cases import foreign

from modelkeep.core.errors import Damaged, Invalid, ModelkeepError, NotFound, Refused
from modelkeep.formats import adopt, mlflow_folder, runtimes
from modelkeep.formats.feed import named
from modelkeep.formats.manifest import MANIFEST, SAMPLE, SIGNATURE, Folder, content, read

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from graph_kit import graph_folder


def column(name: str, kind: str = "double", **more: Any) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": True, **more}


def tensor(shape: list[Any], dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **more}


def folder_of(path: Path, inputs: Any, flavors: Any = None, **files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    said = {
        "flavors": flavors or {"python_function": {"loader_module": "os"}},
        "signature": {"inputs": json.dumps(inputs)},
    }
    (path / "MLmodel").write_text(yaml.safe_dump(said))
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("inputs", "path", "said"),
    [
        ([column("a", "binary"), column("b"), column("c", "object")], "signature.inputs.a", "is a binary"),
        ([tensor([3, 2])], "signature.inputs[0]", "expected [-1, ...]"),
        ([tensor([-1, -1])], "signature.inputs[0]", "with the rest fixed"),
        ([tensor([-1, 2**24 + 1])], "", "more than the 16777216"),
        ([tensor([-1, 4096, 4097])], "", "has 16781312 values"),
        ([], "MLmodel", "has no signature"),
        (["a"], "MLmodel", "a signature lists objects"),
        ({"type": "tensor"}, "MLmodel", "a signature lists objects"),
    ],
)
def test_what_no_columns_can_carry_is_refused_where_it_stands(
    tmp_path: Path, inputs: Any, path: str, said: str
) -> None:
    with pytest.raises(Invalid) as refused:
        adopt.adopt(folder_of(tmp_path / "m", inputs, {"sklearn": {"pickled_model": "model.skops"}}))
    assert refused.value.problems[0].path == path
    assert said in refused.value.problems[0].message
    assert MANIFEST not in Folder(tmp_path / "m")


def test_every_problem_of_a_signature_is_named(tmp_path: Path) -> None:
    flavors = {"sklearn": {"pickled_model": "model.skops"}}
    with pytest.raises(Invalid) as refused:
        adopt.adopt(folder_of(tmp_path, [column("a", "binary"), column("b"), column("c", "array")], flavors))
    assert [problem.path for problem in refused.value.problems] == ["signature.inputs.a", "signature.inputs.c"]


def test_types_become_ours(tmp_path: Path) -> None:
    kinds = ["boolean", "integer", "long", "float", "double", "string", "datetime"]
    inputs = [column(kind, kind, required=kind != "long") for kind in kinds]
    said = mlflow_folder.read(Folder(folder_of(tmp_path, inputs)))
    ours = ["bool", "int64", "int64", "float64", "float64", "string", "timestamp"]
    assert [(field.name, field.type) for field in said.fields] == list(zip(kinds, ours, strict=True))
    assert [field.name for field in said.fields if not field.required] == ["long"]
    assert said.feed is not None
    assert said.feed.casts == {"integer": "int32", "float": "float32"}
    named_tensors = [tensor([-1, 2, 2], name="x"), tensor([-1], "int64", name="n")]
    said = mlflow_folder.read(Folder(folder_of(tmp_path, named_tensors)))
    assert [(field.name, field.type, field.shape) for field in said.fields] == [
        ("x", "float64", (2, 2)),
        ("n", "int64", ()),
    ]
    several = [tensor([-1, 2], name="x"), tensor([-1, 1], "int64", name="n")]
    said = mlflow_folder.read(Folder(folder_of(tmp_path, several)))
    assert [(field.name, field.shape) for field in said.fields] == [("x_0", ()), ("x_1", ()), ("n", ())]
    several.append(tensor([-1, 3], "str", name="words"))
    said = mlflow_folder.read(Folder(folder_of(tmp_path, several)))
    assert [(field.name, field.shape) for field in said.fields] == [("x", (2,)), ("n", ()), ("words", (3,))]
    said = mlflow_folder.read(Folder(folder_of(tmp_path, [tensor([-1, 4097])])))
    assert [(field.name, field.shape) for field in said.fields] == [("x", (4097,))]


@pytest.mark.parametrize(
    "text", ["", "[]", "flavors: 3", "flavors: {a: 3}", "\x00", "a: [", "flavors: !!python/x 1"]
)
def test_a_broken_mlmodel_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(Invalid, match=r"^MLmodel: "):
        adopt.adopt(tmp_path)


def test_no_mlmodel_no_package(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model folder of MLflow"):
        adopt.adopt(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_nothing_in_an_mlmodel_is_run_or_unforeseen(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "MLmodel").write_bytes(data)
    with pytest.raises(ModelkeepError):
        adopt.adopt(tmp_path)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_entry = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["tensor", "double", "string", "long"]) | _json,
        "name": st.sampled_from(["a", "b"]) | _json,
        "required": _json,
        "tensor-spec": st.fixed_dictionaries(
            {}, optional={"dtype": st.sampled_from(["float32", "str"]) | _json, "shape": _json}
        )
        | _json,
    },
)


@example([{"type": "tensor", "tensor-spec": 1}], [], None)
@example([{"type": "tensor", "tensor-spec": {"shape": {"a": 1}}}], [], None)
@example([{"type": "tensor", "tensor-spec": {"shape": [-1, True]}}], [], None)
@example([{"type": "long"}], [{"tensor-spec": {"shape": 3}}], None)
@example([{"type": "long", "name": "\ud800"}], [], None)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_entry, max_size=3) | _json, _json, _json)
def test_any_signature_is_understood_or_refused(tmp_path: Path, inputs: Any, outputs: Any, info: Any) -> None:
    said = {
        "flavors": {"python_function": {}},
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs)},
        "saved_input_example_info": info,
    }
    (tmp_path / "MLmodel").write_bytes(json.dumps(said).encode())
    with pytest.raises(ModelkeepError):
        adopt.adopt(tmp_path)


def test_a_pickle_is_never_opened_before_it_is_trusted(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    flavors = {"sklearn": {"pickled_model": "model.pkl", "serialization_format": "pickle"}, "python_function": {}}
    files = {"model.pkl": pickle.dumps(Bomb(trace))}
    folder = folder_of(tmp_path / "m", [column("a")], flavors, **files)
    with pytest.raises(Refused, match=r"whatever is pickled in model\.pkl"):
        adopt.adopt(folder)
    for name in ("cloudpickle", "skops", "nonsense", None):
        flavors["sklearn"]["serialization_format"] = name
        folder = folder_of(tmp_path / "m", [column("a")], flavors, **files)
        with pytest.raises((Refused, Damaged)):
            adopt.adopt(folder)
    assert not trace.exists()
    digest = adopt.content_of(folder)
    (folder / "more").write_text("one byte more is another folder")
    with pytest.raises(Refused):
        adopt.adopt(folder, trusted=[digest])
    assert not trace.exists()


def test_a_pt2_archive_that_pickles_code_is_refused(tmp_path: Path) -> None:
    case = foreign("pt2")
    trace = tmp_path / "ran"
    name = "data/model.pt2"
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(case.files[name])) as old, zipfile.ZipFile(made, "w") as new:
        for record in old.namelist():
            data = old.read(record)
            if "sample_inputs" in record:
                data = pickle.dumps(Bomb(trace))
            new.writestr(record, data)
    for path, data in case.files.items():
        if path not in (MANIFEST, SIGNATURE, SAMPLE):
            target = tmp_path / "m" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(made.getvalue() if path == name else data)
    with pytest.raises(Refused, match=r"what is pickled or compiled in data/model\.pt2: .*sample_inputs"):
        adopt.adopt(tmp_path / "m")
    assert not trace.exists()


def test_a_manifest_cannot_make_code_of_a_trusted_file_of_another_folder(tmp_path: Path) -> None:
    """What is trusted is what the folder brings, whatever describes it; so a changed file is another folder."""
    case = foreign("function")
    assert content(case.files) == case.trusted[0]
    changed = {**case.files, "score.py": case.files["score.py"] + b"\n"}
    with pytest.raises(Damaged, match=r"score\.py"):
        runtimes.load(changed, trusted=case.trusted)
    listed = read(case.files).files["score.py"].blake3
    from blake3 import blake3

    resealed = case.files[MANIFEST].replace(listed.encode(), blake3(changed["score.py"]).hexdigest().encode())
    size = f'"size":{len(case.files["score.py"])}'.encode()
    resealed = resealed.replace(size, f'"size":{len(changed["score.py"])}'.encode())
    with pytest.raises(Refused, match="would run the code"):
        runtimes.load({**changed, MANIFEST: resealed}, trusted=case.trusted)


def test_files_that_are_not_there_or_not_what_they_seem(tmp_path: Path) -> None:
    for flavor, conf in (
        ("onnx", {"data": "model.onnx"}),
        ("sklearn", {"pickled_model": "../x"}),
        ("xgboost", {"data": None}),
        ("lightgbm", {"data": "model.lgb"}),
        ("pytorch", {"model_data": "data"}),
    ):
        folder = folder_of(tmp_path / flavor, [column("a")], {flavor: conf})
        with pytest.raises(Invalid, match="not in the folder"):
            adopt.adopt(folder)
    for flavor, name in (("onnx", "m.onnx"), ("xgboost", "m.json"), ("lightgbm", "m.lgb"), ("sklearn", "m.skops")):
        key = "pickled_model" if flavor == "sklearn" else "data"
        folder = folder_of(tmp_path / f"{flavor}2", [column("a")], {flavor: {key: name}}, **{name: b"{ nonsense"})
        with pytest.raises(Damaged):
            adopt.adopt(folder)


def test_a_graph_that_does_not_fit_its_signature_is_refused(tmp_path: Path) -> None:
    graph_folder(tmp_path / "g", 1.0, 1)
    for name in (MANIFEST, SIGNATURE):
        (tmp_path / "g" / name).unlink()
    folder = folder_of(tmp_path / "g", [column("a"), column("b"), column("c")], {"onnx": {"data": "model.onnx"}})
    with pytest.raises(Invalid, match="takes 2 values a row, the signature names 3"):
        adopt.adopt(folder)
    said = yaml.safe_load((folder / "MLmodel").read_text())
    del said["signature"]
    (folder / "MLmodel").write_text(yaml.safe_dump(said))
    assert adopt.adopt(folder).runtime == "graph"
    assert [field.name for field in runtimes.signature(Folder(folder)).inputs] == ["x_0", "x_1"]
    assert adopt.adopt(folder).runtime == "graph", "what is a package already stays as it is"
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([1, 2], {"prediction": "i"}),
        (np.array([1, 2], np.float32), {"prediction": "f"}),
        (np.array([[True], [False]]), {"prediction": "b"}),
        (["a", None], {"prediction": "O"}),
        ([b"\xff", 3], {"prediction": "O"}),
        ([[1, 2], [3, 4]], {"prediction": "i"}),
        (({"x": [1.0, 2.0], 3: [1, 2]}), {"x": "f", "3": "i"}),
        ((np.zeros(2), np.zeros((2, 3))), {"output_0": "f", "output_1": "f"}),
        ([{"no": 0.1, "yes": 0.9}, {"no": 0.2, "yes": 0.8}], {"prediction": "f"}),
        (np.array(["2024-01-01", "NaT"], "datetime64[s]"), {"prediction": "O"}),
    ],
)
def test_whatever_a_model_gives_becomes_columns(given: Any, found: dict[str, str]) -> None:
    assert {name: array.dtype.kind for name, array in named(given, 2).items()} == found


@pytest.mark.parametrize("given", [None, 5, [1], [1, 2, 3], {"x": [1]}, "ab", {}, [[1, 2], [3]]])
def test_what_is_no_answer_for_these_rows_is_told(given: Any) -> None:
    with pytest.raises(ModelkeepError, match="for 2 rows"):
        named(given, 2)
