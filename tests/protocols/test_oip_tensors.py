"""Raw tensors: the same bytes as the reference client's, back and forth, and every kind of wrong bytes."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferInput
from tritonclient.utils import triton_to_np_dtype

from modelkeep.core.errors import Invalid
from modelkeep.protocols.oip import tensors

NUMBERS = [name for name in tensors.DTYPES if name != "BF16"]


def sent(values: np.ndarray, datatype: str) -> bytes:
    """The bytes the reference client sends for an array."""
    given = InferInput("x", values.shape, datatype)
    given.set_data_from_numpy(values)
    found: bytes = given._get_binary_data()
    return found


@pytest.mark.parametrize("datatype", NUMBERS)
@settings(max_examples=30)
@given(data=st.data())
def test_numbers_are_the_clients_bytes_both_ways(datatype: str, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(triton_to_np_dtype(datatype), hnp.array_shapes(max_dims=2, max_side=5)))
    raw = sent(values, datatype)
    found = tensors.read(datatype, raw, values.size, "x")
    assert isinstance(found, np.ndarray)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values.reshape(-1))
    assert tensors.write(datatype, values) == raw


@given(values=hnp.arrays(np.float32, 7, elements=st.floats(width=32)))
def test_bf16_is_rounded_as_the_client_does(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        rounded = values.astype(ml_dtypes.bfloat16)
    raw = sent(rounded, "BF16")
    found = tensors.read("BF16", raw, 7, "x")
    np.testing.assert_array_equal(found, rounded.astype(np.float32))
    np.testing.assert_array_equal(tensors.read("BF16", tensors.write("BF16", values), 7, "x"), found)


@given(values=st.lists(st.text(), max_size=9))
def test_texts_are_the_clients_bytes_both_ways(values: list[str]) -> None:
    array = np.array(values, dtype=object)
    raw = sent(array, "BYTES") if values else b""
    assert tensors.read("BYTES", raw, len(values), "x") == values
    assert tensors.write("BYTES", array) == raw


def test_reading_numbers_copies_nothing() -> None:
    raw = np.arange(1000.0).tobytes()
    found = tensors.read("FP64", raw, 1000, "x")
    assert isinstance(found, np.ndarray)
    assert np.shares_memory(found, np.frombuffer(raw, np.uint8))


WRONG = [
    ("FP64", b"1234567", 1, "7 bytes"),
    ("FP64", b"", 1, "0 bytes"),
    ("INT8", b"12", 1, "2 bytes"),
    ("FP128", b"1" * 16, 1, "no datatype"),
    ("fp64", b"1" * 8, 1, "no datatype"),
    ("BOOL", b"\x01\x02", 2, "element 1 is 2"),
    ("BYTES", b"\x01\x00\x00", 1, "3 bytes"),
    ("BYTES", struct.pack("<I", 5) + b"abc", 1, "element 0 ends 2 bytes after"),
    ("BYTES", struct.pack("<I", 2**32 - 1) + b"abc", 1, "element 0 ends"),
    ("BYTES", struct.pack("<I", 1) + b"abc", 1, "holds 1 elements and 2 bytes"),
    ("BYTES", struct.pack("<I", 1) + b"a", 0, "holds 1 elements"),
    ("BYTES", b"", 10**12, "0 bytes cannot hold"),
    ("BYTES", struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"\xff", 2, "element 1 is not UTF-8"),
]


@pytest.mark.parametrize(("datatype", "data", "count", "said"), WRONG)
def test_wrong_bytes_are_named(datatype: str, data: bytes, count: int, said: str) -> None:
    with pytest.raises(Invalid, match=said) as found:
        tensors.read(datatype, data, count, "inputs[4]")
    assert found.value.problems[0].path == "inputs[4]"


@given(datatype=st.sampled_from([*tensors.DTYPES, "BYTES"]), data=st.binary(max_size=64), count=st.integers(0, 9))
def test_any_bytes_are_read_whole_or_refused(datatype: str, data: bytes, count: int) -> None:
    try:
        found = tensors.read(datatype, data, count, "x")
    except Invalid:
        return
    assert len(found) == count
    if isinstance(found, list):
        assert tensors.write("BYTES", np.array(found, dtype=object)) == data


@pytest.mark.parametrize("shape", [[-1], [2, -3], [2**40, 2**40], [10**400]])
def test_absurd_shapes_are_refused(shape: list[int]) -> None:
    with pytest.raises(Invalid) as found:
        tensors.volume(shape, "inputs[0].shape")
    assert len(str(found.value)) < 300
    assert found.value.problems[0].path == "inputs[0].shape"


def test_volumes() -> None:
    assert [tensors.volume(shape, "") for shape in ([], [3], [3, 4], [5, 0])] == [1, 3, 12, 0]
