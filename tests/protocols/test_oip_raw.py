"""Raw tensors and JSON mean the same: what is sent either way ends in the same batch, or is refused both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import triton_to_np_dtype

from modelkeep.core.errors import Invalid
from modelkeep.formats.batch import Batch
from modelkeep.formats.signature import Field, Signature
from modelkeep.protocols.oip import codec, tensors
from modelkeep.protocols.oip.raw import Plan, Raw
from modelkeep.serve.columns import Inputs, Rows

OUTPUT = (Field(name="prediction", type="float64"),)


def inputs(*fields: Field) -> Inputs:
    return Inputs(Signature(inputs=fields, outputs=OUTPUT, task="regression"))


NUMBERS = inputs(*(Field(name=name, type="float64") for name in "abc"))
WHOLE = inputs(Field(name="a", type="int64"), Field(name="b", type="float64", required=False))
ONE = inputs(Field(name="a", type="float64"))
MIXED = inputs(
    Field(name="a", type="float64", required=False),
    Field(name="b", type="int64"),
    Field(name="c", type="bool"),
    Field(name="t", type="timestamp", required=False),
    Field(name="s", type="string"),
    Field(name="o", type="string", required=False),
)
BOUNDED = inputs(*(Field(name=name, type="float64", min=0.0, max=4e3, strict=name != "b") for name in "abc"))
WORDS = inputs(Field(name="s", type="string"), Field(name="o", type="string"))
ALL = [NUMBERS, WHOLE, ONE, MIXED, WORDS]

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    **{
        f"{sign}INT{bits}": st.integers(
            *(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
        )
        for bits in (8, 16, 32, 64)
        for sign in ("", "U")
    },
    "FP16": st.floats(width=16),
    "FP32": st.floats(width=32) | st.integers(-3, 3).map(float),
    "FP64": st.floats() | st.integers(-3, 3).map(float),
    "BYTES": st.text(max_size=4) | st.just("2026-01-02T03:04:05"),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[Inputs, bool, list[codec.Tensor]]:
    """Tensors for one of the signatures, most of them right."""
    mine = draw(st.sampled_from(ALL))
    rows = draw(st.integers(1, 3))
    matrix = draw(st.integers(0, 3)) == 0
    names = ["rows"] if matrix else list(draw(st.permutations(mine.names)))
    if not matrix and draw(st.integers(0, 4)) == 0:
        names = names[draw(st.integers(0, 1)) :] + draw(st.sampled_from([[], ["stranger"], names[:1]]))
    made = []
    for name in names:
        kind = mine.types[mine.index[name]] if name in mine.index else mine.types[0]
        fitting = [one for one in VALUES if codec.fits(one, kind)] if draw(st.integers(0, 6)) else list(VALUES)
        datatype = draw(st.sampled_from(fitting))
        width = len(mine.names) if matrix else 1
        shape = [rows, width] if matrix else draw(st.sampled_from([[rows], [rows], [rows, 1]]))
        data = draw(st.lists(VALUES[datatype], min_size=rows * width, max_size=rows * width))
        made.append(codec.Tensor(name, shape, datatype, data))
    return mine, draw(st.booleans()), made


def stacked(mine: Inputs, rows: Any) -> Batch | None:
    try:
        return mine.stack([rows()])
    except Invalid:
        return None


def raw(given: list[codec.Tensor]) -> tuple[list[Raw], bytes]:
    pieces = [tensors.write(one.datatype, np.array(one.data, triton_to_np_dtype(one.datatype))) for one in given]
    return [
        Raw(one.name, one.datatype, one.shape, len(data)) for one, data in zip(given, pieces, strict=True)
    ], b"".join(pieces)


@given(request=requests(), before=st.integers(0, 9))
def test_raw_tensors_mean_what_json_means(request: Any, before: int) -> None:
    mine, ignore, given_ = request
    described, data = raw(given_)
    listed = stacked(mine, lambda: codec.rows(mine, given_, ignore_unknown=ignore))
    plan = Plan(mine, described, ignore_unknown=ignore)
    read = stacked(mine, lambda: plan.rows(b"x" * before + data, before))
    if listed is None or read is None:
        assert listed is read
        return
    np.testing.assert_array_equal(read.numbers, listed.numbers)
    assert read.strings.tolist() == listed.strings.tolist()
    assert read.numbers.dtype == np.float64


@given(requests_=st.lists(requests(), min_size=2, max_size=5), order=st.randoms())
def test_requests_of_all_forms_share_a_batch(requests_: list[Any], order: Any) -> None:
    """JSON cells, columns and raw blocks under each other are what each is alone."""
    mine = requests_[0][0]
    parts: list[Rows] = []
    alone: list[Batch] = []
    for other, _, given_ in requests_:
        if other is not mine:
            continue
        described, data = raw(given_)
        ways = [
            lambda given_=given_: codec.rows(mine, given_),
            lambda described=described, data=data: Plan(mine, described).rows(data),
        ]
        way = order.choice(ways)
        try:
            rows = way()
            alone.append(mine.stack([rows]))
            parts.append(rows)
        except Invalid:
            continue
    if parts:
        together = mine.stack(parts)
        np.testing.assert_array_equal(together.numbers, np.concatenate([one.numbers for one in alone], axis=1))
        assert together.strings.tolist() == np.concatenate([one.strings for one in alone], axis=1).tolist()


def test_numbers_are_not_copied_before_they_are_checked() -> None:
    values = np.arange(3000.0).reshape(1000, 3)
    data = values.tobytes()
    (matrix,) = [Plan(NUMBERS, [Raw("x", "FP64", [1000, 3], len(data))]).rows(data)]
    described = [Raw(name, "FP64", [1000], 8000) for name in "abc"]
    block = Plan(NUMBERS, described).rows(data)
    for rows in (matrix, block):
        assert rows.block is not None
        assert np.shares_memory(rows.block, np.frombuffer(data, np.uint8))
    assert NUMBERS.stack([matrix]).numbers.base is not None
    np.testing.assert_array_equal(NUMBERS.stack([matrix]).numbers, values.T)


@pytest.mark.parametrize("odd", [("a", -1.0), ("c", 4001.0)])
def test_bounds_are_checked_without_copying_and_only_what_is_outside_is_looked_at_closely(odd: Any) -> None:
    values = np.arange(3000.0).reshape(1000, 3)
    values[5, 1] = 1e9  # an input that may lie anywhere
    data = values.tobytes()
    inside = Plan(BOUNDED, [Raw("x", "FP64", [1000, 3], len(data))]).rows(data)
    assert inside.block is not None
    found = BOUNDED.stack([inside]).numbers
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(found, values.T)
    name, value = odd
    outside = Rows(1, cells=[value if one == name else 1.0 for one in "abc"])
    with pytest.raises(Invalid) as refused:
        BOUNDED.stack([inside, outside])
    said = [(problem.path, problem.message) for problem in refused.value.problems]
    assert said == [(f"inputs.{name}[1000]", f"found {value}, expected a number from 0 to 4000")]


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_tensors_come_in_any_order(order: str) -> None:
    values = {"a": [1.0, 2.0], "b": [3.0, 4.0], "c": [5.0, 6.0]}
    data = b"".join(np.array(values[name]).tobytes() for name in order)
    rows = Plan(NUMBERS, [Raw(name, "FP64", [2], 16) for name in order]).rows(data)
    assert NUMBERS.stack([rows]).numbers.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("mine", [NUMBERS, WHOLE], ids=["floats", "whole"])
@pytest.mark.parametrize(
    "odd", [1, 2.5, None, "x", True, 2**70, -(2**53), 1e308, float("nan"), float("inf"), [1.0]]
)
@pytest.mark.parametrize("row", [0, 200])
def test_large_requests_are_packed_and_mean_the_same(mine: Inputs, odd: Any, row: int) -> None:
    width = len(mine.names)
    cells: list[Any] = [float(number) for number in range(300 * width)]
    cells[row * width] = odd
    packed = Rows(300, cells=list(cells))
    mine.pack(packed)
    assert (packed.cells is None) == isinstance(odd, int | float)
    said = []
    for rows in (Rows(300, cells=cells), packed):
        try:
            said.append((mine.stack([rows, Rows(1, cells=[1.0] * width)]).numbers.tolist(), []))
        except Invalid as error:
            said.append(([], error.problems))
    assert repr(said[0]) == repr(said[1])


def test_small_requests_and_others_are_left_alone() -> None:
    for mine, rows in ((NUMBERS, Rows(1, cells=[1.0, 2.0, 3.0])), (MIXED, Rows(300, cells=[1.0] * 1800))):
        mine.pack(rows)
        assert rows.block is None
