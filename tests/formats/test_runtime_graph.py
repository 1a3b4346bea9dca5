"""ONNX graphs with dimensions left open or fixed to one row, and what is done with those that no inputs fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_cases import frame, quiet
from tensor_cases import digits_graph, images, said, scores

from modelkeep.core.errors import Invalid, Refused
from modelkeep.formats import adopt, runtimes
from modelkeep.formats.manifest import Folder


def logged(folder: Path, graph: Any, given: Any = None, answer: Any = None, **more: Any) -> Path:
    """A graph as MLflow saves it; without a signature when nothing is given."""
    import mlflow.onnx

    about = {"pip_requirements": ["numpy"], **more} if given is None else said(given, answer, **more)
    with quiet():
        mlflow.onnx.save_model(graph, str(folder), **about)
    return folder


def ask(folder: Path, **columns: Any) -> dict[str, Any]:
    assert runtimes.signature(Folder(folder)).inputs
    return dict(runtimes.load(Folder(folder)).predict(columns))


def test_an_open_dimension_is_as_long_as_the_signature_says(tmp_path: Path) -> None:
    X = images(3)
    folder = logged(tmp_path / "m", digits_graph(side=None), X, X.sum(axis=(1, 2)), input_example=X)
    assert adopt.adopt(folder).runtime == "graph"
    assert [(one.name, one.shape) for one in runtimes.signature(Folder(folder)).inputs] == [("x", (28, 28))]
    assert np.allclose(ask(folder, x=X)["score"], X.sum(axis=(1, 2)), atol=1e-3)


def test_an_open_dimension_is_as_long_as_there_are_columns(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Neg", ["X"], ["less"])],
        "open",
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, None])],
        [helper.make_tensor_value_info("less", TensorProto.DOUBLE, [None, None])],
    )
    X = frame(4)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = logged(tmp_path / "m", made, X, -X)
    assert adopt.adopt(folder).runtime == "graph"
    assert np.allclose(ask(folder, **X)["less"], -X)


def test_a_graph_for_one_row_answers_many(tmp_path: Path) -> None:
    X = images(3)
    folder = logged(tmp_path / "m", digits_graph(rows=1), X, scores(X), input_example=X)
    assert adopt.adopt(folder).runtime == "graph"
    assert np.allclose(ask(folder, x=X)["score"], scores(X), atol=1e-3)
    assert np.allclose(ask(folder, x=X[:1])["score"], scores(X[:1]), atol=1e-3)


def test_a_graph_whose_inputs_no_columns_make_is_left_to_mlflow_when_trusted(tmp_path: Path) -> None:
    X = frame(4)
    folder = logged(tmp_path / "m", digits_graph(side=None), X, X.a)
    with pytest.raises(Refused, match="the code that its MLflow folder brings"):
        adopt.adopt(folder)


def test_without_that_flavour_the_reason_is_told(tmp_path: Path) -> None:
    X = frame(4)
    folder = logged(tmp_path / "m", digits_graph(side=None), X, X.a)
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("python_function:", "another:"))
    with pytest.raises(Invalid, match="input 'image' of the graph has shape") as no:
        adopt.adopt(folder)
    assert "the signature gives it rows of shape [3]" in str(no.value)


def test_an_image_graph_that_does_not_fit_its_signature_is_refused(tmp_path: Path) -> None:
    X = images(2, 28, 27)
    folder = logged(tmp_path / "m", digits_graph(), X, X.sum(axis=(1, 2)))
    with pytest.raises(Invalid, match="takes 784 values a row, the signature names 756"):
        adopt.adopt(folder)
