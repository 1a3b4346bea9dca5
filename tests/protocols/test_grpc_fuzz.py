"""Whatever the messages say, the answer is a status of the client's: never ours, never a lost connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_kit import GrpcWorker, grpc_worker
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_kit import Home, Made

from modelkeep.core.errors import Invalid
from modelkeep.protocols.grpc.messages import message
from modelkeep.protocols.oip_grpc.requests import Requests
from modelkeep.protocols.tfserving import requests as tf_requests
from modelkeep.serve.columns import Inputs

INPUTS = 1200
"""How many requests are made up, in all."""
THEIRS = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}

_Infer = message("inference.ModelInferRequest")
_Predict = message("tensorflow.serving.PredictRequest")
_Classify = message("tensorflow.serving.ClassificationRequest")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, flight_model: Made) -> Iterator[GrpcWorker]:
    home = Home(tmp_path_factory.mktemp("fuzz"))
    home.serve("flights", (3, home.keep(flight_model), 1.0, "stable"))
    with grpc_worker(home) as found:
        yield found


@pytest.fixture(scope="module")
def price_inputs(price_model: Made) -> Inputs:
    return price_model.loaded().inputs


@pytest.fixture(scope="module")
def channel(process: GrpcWorker) -> Iterator[grpc.Channel]:
    with process.channel() as found:
        yield found


def outcome(channel: grpc.Channel, path: str, data: bytes) -> Any:
    try:
        channel.unary_unary(path)(data, timeout=20)
    except grpc.RpcError as error:
        assert error.details()
        return error.code()
    return grpc.StatusCode.OK


NAMES = st.sampled_from(["carrier", "distance", "hour", "rows", "", "x", "ünï"])
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**62, -(2**63)]), max_size=3)
RAW = st.one_of(
    st.sampled_from([b"", bytes(8), bytes(16), b"\x02\x00\x00\x00AA", np.float64(np.nan).tobytes(), b"\xff" * 8]),
    st.binary(max_size=30),
)
TENSORS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from(["FP64", "FP32", "FP16", "BF16", "INT64", "UINT8", "BOOL", "BYTES", "", "X"]),
        "shape": SIZES,
    },
    optional={
        "contents": st.fixed_dictionaries(
            {},
            optional={
                "fp64_contents": st.lists(st.floats(), max_size=3),
                "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
                "bytes_contents": st.lists(st.binary(max_size=4), max_size=3),
                "bool_contents": st.lists(st.booleans(), max_size=3),
            },
        )
    },
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "binary_data_output", "x"]),
    st.sampled_from([{"int64_param": -1}, {"string_param": "a"}, {"bool_param": True}, {"double_param": 0.5}, {}]),
    max_size=2,
)
INFERS = st.builds(
    lambda **said: _Infer(**said).SerializeToString(),
    model_name=st.sampled_from(["flights", "flights", "flights", "x", ""]),
    model_version=st.sampled_from(["", "", "3", "champion", "٣", "-1", "99999999999999999999"]),
    id=st.text(max_size=5),
    parameters=PARAMETERS,
    inputs=st.lists(TENSORS, max_size=4),
    outputs=st.lists(st.fixed_dictionaries({"name": st.sampled_from(["label", "x"])}), max_size=2),
    raw_input_contents=st.lists(RAW, max_size=4),
)
PROTOS = st.builds(
    lambda shape, **said: {**said, "tensor_shape": {"dim": [{"size": size} for size in shape]}},
    shape=SIZES,
    dtype=st.integers(0, 25),
    tensor_content=RAW,
    double_val=st.lists(st.floats(), max_size=2),
    half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
    string_val=st.lists(st.binary(max_size=3), max_size=2),
    int64_val=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
)
PREDICTS = st.builds(
    lambda name, inputs, wanted: _Predict(
        model_spec={"name": name}, inputs=inputs, output_filter=wanted
    ).SerializeToString(),
    name=st.sampled_from(["flights", "flights", "x", ""]),
    inputs=st.dictionaries(NAMES, PROTOS, max_size=4),
    wanted=st.lists(st.sampled_from(["label", "x"]), max_size=1),
)
FEATURES = st.sampled_from(
    [
        {"bytes_list": {"value": [b"AA"]}},
        {"bytes_list": {"value": [b"\xff"]}},
        {"int64_list": {"value": [3]}},
        {"int64_list": {"value": [2**63 - 1]}},
        {"float_list": {"value": [1.5]}},
        {"float_list": {"value": [float("nan")]}},
        {"float_list": {"value": [1.0, 2.0]}},
        {"float_list": {}},
        {},
    ]
)
EXAMPLES = st.lists(
    st.builds(lambda given: {"features": {"feature": given}}, st.dictionaries(NAMES, FEATURES, max_size=4)),
    max_size=3,
)
CLASSIFIES = st.builds(
    lambda examples: _Classify(
        model_spec={"name": "flights"}, input={"example_list": {"examples": examples}}
    ).SerializeToString(),
    EXAMPLES,
)
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def mutated(data: bytes, places: list[tuple[int, int]]) -> bytes:
    made = bytearray(data)
    for place, value in places:
        if made:
            made[place % len(made)] = value
    return bytes(made)


BROKEN = st.builds(
    mutated,
    st.one_of(INFERS, PREDICTS, CLASSIFIES),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
)


@pytest.mark.parametrize(
    ("path", "messages"),
    [
        (INFER, INFERS),
        (PREDICT, PREDICTS),
        ("/tensorflow.serving.PredictionService/Classify", CLASSIFIES),
        (INFER, BROKEN),
        (PREDICT, BROKEN),
        ("/tensorflow.serving.PredictionService/MultiInference", BROKEN),
    ],
)
def test_no_message_is_our_fault(channel: grpc.Channel, path: str, messages: Any) -> None:
    @settings(max_examples=INPUTS // 6, deadline=None)
    @given(data=messages)
    def ask(data: bytes) -> None:
        assert outcome(channel, path, data) in THEIRS

    ask()


WELL_FORMED = st.builds(
    lambda id, name, raw: _Infer(
        model_name=name,
        id=id,
        inputs=[{"name": str(place), "datatype": "INT8", "shape": [len(one)]} for place, one in enumerate(raw)],
        raw_input_contents=raw,
    ).SerializeToString(),
    id=st.text(max_size=3),
    name=st.sampled_from(["flights", "x"]),
    raw=st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=3),
)
CHANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)


def read(reader: Requests, data: bytes) -> Any:
    """All that a request says, however it was read."""
    try:
        found = reader.read(data)
    except Invalid:
        return "invalid"
    if found.message is None:
        size = sum(one.size for one in found.asked.described)
        return found.asked._replace(serial=0), found.id, found.data[found.start : found.start + size]
    return found.asked, found.id, b"".join(found.message.raw_input_contents)


@settings(max_examples=500, deadline=None)
@given(first=WELL_FORMED, changes=CHANGES)
def test_requests_of_a_known_form_say_what_parsing_says(first: bytes, changes: list[tuple[int, int]]) -> None:
    second = mutated(first, changes)
    reader = Requests()
    reader.read(first)
    assert reader.read(first).message is None
    assert read(reader, second) == read(Requests(), second)


def test_requests_of_the_same_length_are_known_side_by_side() -> None:
    reader = Requests()
    made = [
        _Infer(model_name=name, inputs=[{"name": "a"}], raw_input_contents=[b"12"]) for name in ("x", "y", "z")
    ]
    sent = [one.SerializeToString() for one in made]
    assert len(set(map(len, sent))) == 1
    assert [reader.read(data).message is None for data in sent] == [False] * 3
    found = [reader.read(data) for data in sent]
    assert [(one.message, one.asked.name) for one in found] == [(None, "x"), (None, "y"), (None, "z")]


@dataclass
class Asked:
    """As much of a lane as reading a request needs."""

    inputs: Inputs
    ignore_unknown: bool = False
    memo: dict[str, Any] = field(default_factory=dict)


NUMBERS = st.lists(st.floats(-1e3, 1e3, width=16), min_size=1, max_size=2)
FILLED = st.builds(
    lambda dtype, values: {
        "dtype": dtype,
        "tensor_shape": {"dim": [{"size": len(values)}]},
        **{
            1: {"float_val": values},
            2: {"double_val": values},
            3: {"tensor_content": np.array(values).astype(np.int32).tobytes()},
            19: {"tensor_content": np.array(values, np.float16).tobytes()},
        }[dtype],
    },
    dtype=st.sampled_from([1, 2, 2, 3, 19]),
    values=NUMBERS,
)


def taken(reader: tf_requests.Requests, asked: Asked, data: bytes) -> Any:
    """The rows of a request to predict, however it was read."""
    try:
        rows = tf_requests.rows(asked, *reader.read(data))  # type: ignore[arg-type]
        return asked.inputs.stack([rows]).numbers.tolist()
    except Invalid:
        return "invalid"


@settings(max_examples=300, deadline=None)
@given(
    inputs=st.dictionaries(st.sampled_from(["a", "b", "c", "rows"]), FILLED, min_size=1, max_size=3),
    changes=CHANGES,
)
def test_predictions_of_a_known_form_say_what_parsing_says(
    price_inputs: Inputs, inputs: dict[str, Any], changes: list[tuple[int, int]]
) -> None:
    asked = Asked(price_inputs)
    first = _Predict(model_spec={"name": "x"}, inputs=inputs).SerializeToString()
    second = mutated(first, changes)
    reader = tf_requests.Requests()
    taken(reader, asked, first)
    assert reader.read(first)[1] is None
    assert taken(reader, asked, second) == taken(tf_requests.Requests(), asked, second)
