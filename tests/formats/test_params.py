"""Params of calls: checked as MLflow checks them, by its own word; read from the signature it writes."""

from __future__ import annotations

import json
import logging
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runtime_cases import columns, frame, saved, target

from modelkeep.core.errors import Invalid
from modelkeep.formats import manifest, mlflow_folder, runtimes
from modelkeep.formats.batch import Layout
from modelkeep.formats.params import packed, unpacked
from modelkeep.formats.signature import Param, Signature, from_builtins

DEFAULTS: dict[str, Any] = {
    "text": "a",
    "real": 1.0,
    "whole": 3,
    "truth": True,
    "day": np.datetime64("2024-01-02"),
    "reals": [1.0, 2.0],
    "texts": ["x"],
    "thing": {"a": 1.0, "b": "x"},
}


@cache
def schema() -> Any:
    from mlflow.models import infer_signature

    return infer_signature(np.zeros((2, 1)), params=DEFAULTS).params


@cache
def specs() -> tuple[Param, ...]:
    inputs = [{"type": "double", "name": "x", "required": True}]
    said = {
        "flavors": {"python_function": {}},
        "signature": {"inputs": json.dumps(inputs), "params": schema().to_json()},
    }
    return mlflow_folder.read({"MLmodel": yaml.safe_dump(said).encode()}).params


def test_a_signatures_params_are_read_and_kept() -> None:
    found = {spec.name: (spec.type, spec.many, spec.default) for spec in specs()}
    assert found == {
        "text": ("string", False, "a"),
        "real": ("double", False, 1.0),
        "whole": ("long", False, 3),
        "truth": ("boolean", False, True),
        "day": ("datetime", False, "2024-01-02"),
        "reals": ("double", True, [1.0, 2.0]),
        "texts": ("string", True, ["x"]),
        "thing": ("object", False, {"a": 1.0, "b": "x"}),
    }
    signature = Signature(inputs=(), outputs=(), task="regression", params=specs())
    assert from_builtins(json.loads(json.dumps(signature.to_builtins()))) == signature


@pytest.mark.parametrize(
    ("param", "said"),
    [
        ({"name": "p", "type": "binary", "default": None}, "p: is a binary; params are one of boolean"),
        ({"name": "p", "type": [1], "default": None}, r"p: is a \[1\]; params are one of"),
        ({"name": "p", "type": "long", "shape": [2]}, r"p: has shape \[2\]; expected null, or \[-1\]"),
    ],
)
def test_params_that_none_can_be_are_told(param: dict[str, Any], said: str) -> None:
    inputs = [{"type": "double", "name": "x"}]
    about = {"flavors": {}, "signature": {"inputs": json.dumps(inputs), "params": json.dumps([param])}}
    with pytest.raises(Invalid, match=f"signature.params.{said}"):
        mlflow_folder.read({"MLmodel": yaml.safe_dump(about).encode()})
    for broken in ("{", '["a"]', '[{"name": "\\ud800", "type": "string"}]', f'[{{"default": {2**70}}}]'):
        about["signature"]["params"] = broken
        with pytest.raises(Invalid, match=r"^MLmodel: "):
            mlflow_folder.read({"MLmodel": yaml.safe_dump(about).encode()})


def test_the_example_of_a_model_with_params_is_its_rows() -> None:
    from mlflow.models import infer_signature
    from mlflow.pyfunc import PythonModel, save_model
    from pandas import DataFrame

    class Plain(PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input["x"].to_numpy() * params["factor"]

    rows = DataFrame({"x": [1.0, 2.0]})
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_model(
                f"{folder}/m",
                python_model=Plain(),
                signature=infer_signature(rows, params={"factor": 2.0}),
                input_example=(rows, {"factor": 2.0}),
                pip_requirements=["numpy"],
            )
            files = {path.name: path.read_bytes() for path in Path(folder, "m").iterdir() if path.is_file()}
    finally:
        logging.disable(logging.NOTSET)
    assert mlflow_folder.read(files).sample == {"x": [1.0, 2.0]}


values = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
)
values |= st.sampled_from(["2024-01-02", "2024-01-02T03:04:05", "2024-13-01"])


@example({"whole": True})
@example({"real": 1})
@example({"real": 10**400})
@example({"day": "2024-05-06T07:08:09"})
@example({"reals": None})
@example({"reals": [1, None]})
@example({"reals": [[1.0]]})
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(set(DEFAULTS) - {"thing"})), values | st.lists(values, max_size=3)))
def test_what_mlflow_takes_is_taken_and_means_the_same(said: dict[str, Any]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.models.utils import _enforce_params_schema

    try:
        expected = _enforce_params_schema(dict(said), schema())
    except (MlflowException, ValueError):  # lists of unequal depth end in NumPy's own error
        with pytest.raises(Invalid) as refused:
            packed(specs(), said)
        assert {problem.path for problem in refused.value.problems} <= {f"params.{name}" for name in said}
        return
    try:
        told = unpacked(packed(specs(), said))
    except Invalid as error:  # MLflow also takes moments that ISO 8601 does not know, such as "now" or "2024"
        assert {problem.path for problem in error.problems} == {"params.day"}
        return
    assert _enforce_params_schema(told, schema()) == expected, "defaults are MLflow's to add"


def test_params_that_say_nothing_new_are_none() -> None:
    assert packed(specs(), {}) == packed(specs(), {"real": 1, "text": "a", "reals": [1, 2]}) == b""
    assert unpacked(b"") is None
    one, other = {"real": 2, "text": "b"}, {"text": "b", "real": 2.0}
    assert packed(specs(), one) == packed(specs(), other) != packed(specs(), {"real": 2})
    assert unpacked(packed(specs(), {"real": None})) == {"real": None}
    assert packed(specs(), {"thing": {"b": "x", "a": 1.0}}) == b""


def test_every_problem_is_named_with_what_was_expected() -> None:
    said = {"temperature": 1, "whole": 1.5, "texts": "x", "thing": [], "text": "\ud800", "day": "soon"}
    with pytest.raises(Invalid) as refused:
        packed(specs(), said)
    names = ", ".join(DEFAULTS)
    assert {problem.path: problem.message for problem in refused.value.problems} == {
        "params.temperature": f"is no parameter; expected {names}",
        "params.whole": "is 1.5; expected a value of type long",
        "params.texts": "is 'x'; expected a list of type string",
        "params.thing": "is []; expected a value of type object",
        "params.text": "is '\\ud800'; expected a value of type string",
        "params.day": "is 'soon'; expected a value of type datetime as ISO 8601 writes it",
    }
    assert packed(specs(), {"temperature": 1}, ignore_unknown=True) == b"", "as MLflow's own server does"
    with pytest.raises(Invalid, match="expected none, for this version's signature names none"):
        packed((), {"temperature": 1})


def test_trees_with_params_are_run_by_mlflow_which_hands_them_on() -> None:
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    model = xgboost.XGBClassifier(n_estimators=3).fit(frame(), target())
    signature = infer_signature(frame(), target(), params={"output_margin": False})
    files, trusted = saved(
        lambda to: mlflow.xgboost.save_model(model, to, signature=signature, pip_requirements=["numpy"])
    )
    about = manifest.read(files)
    assert (about.runtime, len(trusted)) == ("pyfunc", 1)
    assert "which MLflow hands to the model" in about.note
    loaded = runtimes.load(files, trusted=trusted)
    batch = Layout(runtimes.signature(files)).pack(columns())
    assert loaded.predict(batch)["prediction"].tolist() == target().tolist()
    batch.params = packed(runtimes.signature(files).params, {"output_margin": True})
    margins = model.predict(frame(), output_margin=True)
    np.testing.assert_allclose(loaded.predict(batch)["prediction"], margins, rtol=1e-6)
