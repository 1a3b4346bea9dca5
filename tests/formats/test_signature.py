"""What a signature learns from a table, and how it is written down."""

from __future__ import annotations

import datetime
import json

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from format_cases import INPUTS, table

from modelkeep.core.errors import Invalid
from modelkeep.formats.inference import bounded, infer
from modelkeep.formats.signature import Field, from_builtins

NAN = float("nan")
CODED = pa.array(["b", "a", None]).dictionary_encode()


def test_it_learns_types_holes_ranges_and_categories() -> None:
    fields = {field.name: field for field in infer(table(), INPUTS, "classification", ["a", "b"]).inputs}
    assert list(fields) == INPUTS
    assert [fields[name].type for name in INPUTS] == [
        "float64", "float64", "int64", "bool", "string", "string", "timestamp",
    ]  # fmt: skip
    assert {name for name in INPUTS if not fields[name].required} == {"distance", "carrier"}
    assert (fields["count"].min, fields["count"].max) == (0.0, 11.0)
    assert fields["carrier"].categories == ("DL", "UA", "rare", "É∂", "日本")
    column = table().column("distance").drop_null().to_numpy()
    assert (fields["distance"].min, fields["distance"].max) == (column.min(), column.max())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, 3], pa.int8()), Field(name="c", type="int64", required=False, min=1.0, max=3.0)),
        (pa.array([1.5, NAN, float("inf")]), Field(name="c", type="float64", required=False, min=1.5, max=1.5)),
        (pa.array([None, None], pa.null()), Field(name="c", type="float64", required=False)),
        (pa.array([True, None]), Field(name="c", type="bool", required=False)),
        (CODED, Field(name="c", type="string", required=False, categories=("a", "b"))),
        (pa.array([datetime.date(1970, 1, 2)]), Field(name="c", type="timestamp", min=86400e6, max=86400e6)),
        (pa.array([f"text {i}" for i in range(60)]), Field(name="c", type="string")),
        (pa.array([], pa.float64()), Field(name="c", type="float64")),
    ],
)  # fmt: skip
def test_every_kind_of_column(column: pa.Array, expected: Field) -> None:
    assert infer(pa.table({"c": column}), ["c"], "regression").inputs == (expected,)


@pytest.mark.parametrize(
    ("stated", "ends"),
    [
        ((None, None), (2.0, 5.0)),
        ((0.0, 9.0), (0.0, 9.0)),
        ((None, 9.0), (2.0, 9.0)),
        ((3.0, 4.0), (2.0, 5.0)),  # what was seen in training is never refused
    ],
)
def test_a_range_is_that_of_training_widened_by_what_is_stated(
    stated: tuple[float | None, float | None], ends: tuple[float, float]
) -> None:
    fields = infer(pa.table({"a": [5.0, 2.0], "b": [1, 2]}), ["a", "b"], "regression").inputs
    assert bounded(fields, {"a": stated}) == (
        Field(name="a", type="float64", min=ends[0], max=ends[1], strict=True),
        fields[1],
    )


def test_all_columns_no_model_takes_are_named_at_once() -> None:
    odd = pa.table({"list": pa.array([[1]]), "ok": pa.array([1]), "blob": pa.array([b"x"])})
    with pytest.raises(Invalid) as failed:
        infer(odd, ["list", "ok", "blob"], "regression")
    assert [problem.path for problem in failed.value.problems] == ["data.list", "data.blob"]


@pytest.mark.parametrize("classes", [(0, 1), (False, True), ("x", "é", "z"), (1.5, 2.5)])
def test_it_survives_json(classes: tuple[object, ...]) -> None:
    made = infer(table(), INPUTS, "classification", classes, strict=["carrier"])  # type: ignore[arg-type]
    again = from_builtins(json.loads(json.dumps(made.to_builtins())))
    assert again == made
    assert [type(item) for item in again.classes] == [type(item) for item in classes]
    assert again.inputs[4].strict


def test_what_is_no_signature_is_refused() -> None:
    with pytest.raises(Invalid, match="not a signature"):
        from_builtins({"inputs": [{"name": "a", "type": "tensor"}]})


def test_mlflow_reads_it() -> None:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType

    made = infer(table(), INPUTS, "classification", ["a", "b"])
    read = ModelSignature.from_dict(made.to_mlflow())
    assert read.inputs.input_names() == INPUTS
    assert [column.type for column in read.inputs] == [
        DataType.double, DataType.double, DataType.long, DataType.boolean, DataType.string, DataType.string,
        DataType.datetime,
    ]  # fmt: skip
    assert read.inputs.optional_input_names() == ["distance", "carrier"]
    assert [column.name for column in read.outputs] == ["label"]
    assert msgspec.json.decode(made.to_mlflow()["params"])[0]["default"] == "predict"


def test_many_distinct_strings_late_in_the_table_are_no_categories() -> None:
    column = ["same"] * 6000 + [f"v{i}" for i in range(100)]
    assert infer(pa.table({"c": column}), ["c"], "regression").inputs[0].categories is None
    assert np.size(infer(pa.table({"c": column}), ["c"], "regression", strict=["c"]).inputs[0].categories) == 101
