"""Our messages are those that the reference clients send: the same names, numbers and types."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from tensorflow_client import load
from tritonclient.grpc import model_config_pb2, service_pb2

from modelkeep.protocols.grpc import messages

SOURCES = messages.COMPILED.with_name("proto")


def described(message: Descriptor) -> dict[str, list[Any]]:
    """Full name of each field of a message and of those within it, with what goes over the wire."""
    found = {}
    for field in message.fields:
        kind = 5 if field.type == field.TYPE_ENUM else field.type  # an enumeration is a number, as int32
        of = field.message_type.full_name if field.message_type else ""
        found[field.full_name] = [field.number, kind, field.is_repeated, of]
    for inner in message.nested_types:
        found |= described(inner)
    return found


def ours(package: str) -> dict[str, list[Any]]:
    found = {}
    for file in messages.files():
        if file.package == package:
            for message in file.message_type:
                name = f"{package}.{message.name}"
                found |= described(messages.message(name).DESCRIPTOR)
    assert found
    return found


def test_open_inference_messages_are_those_of_the_client() -> None:
    theirs = {}
    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            theirs |= described(message)
    mine = ours("inference")
    assert {name: theirs.get(name) for name in mine} == mine


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow.serving"])
def test_tensorflow_messages_are_those_of_the_client(package: str) -> None:
    folders = {
        "tensorflow.core": ("example.example_pb2", "framework.tensor_pb2", "protobuf.meta_graph_pb2"),
        "tensorflow_serving.apis": ("prediction_service_pb2", "get_model_status_pb2", "get_model_metadata_pb2"),
    }
    for folder, names in folders.items():
        for name in names:
            load(f"{folder}.{name}")
    pool = descriptor_pool.Default()
    mine = ours(package)
    theirs: dict[str, list[Any]] = {}
    for message in [one for file in messages.files() if file.package == package for one in file.message_type]:
        theirs |= described(pool.FindMessageTypeByName(f"{package}.{message.name}"))
    assert {name: theirs.get(name) for name in mine} == mine


def test_what_is_compiled_is_what_the_sources_say() -> None:
    for file in messages.files():
        if file.name.startswith("google/"):
            continue
        source = (SOURCES / file.name).read_text()
        said = sorted(re.findall(r"(\w+) = (\d+);", source))
        compiled = []
        pending = [*file.message_type]
        enums = [*file.enum_type]
        while pending:
            message = pending.pop()
            compiled += [(field.name, str(field.number)) for field in message.field]
            enums += message.enum_type
            pending += [one for one in message.nested_type if not one.options.map_entry]
        compiled += [(value.name, str(value.number)) for enum in enums for value in enum.value]
        assert sorted(compiled) == said, file.name
