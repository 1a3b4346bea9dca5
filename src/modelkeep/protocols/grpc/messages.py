"""The messages of the protocols, as classes.

``proto/`` holds the sources; ``messages.pb`` is what protoc makes of them, in that folder:
``protoc --include_imports --descriptor_set_out=../messages.pb *.proto``. They live in a pool of their own, so that
a client library in the same process can have its own messages of the same names.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from modelkeep.core.errors import Invalid

COMPILED: Final = Path(__file__).with_name("messages.pb")


def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """The compiled sources, each after those that it imports."""
    return list(descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file)


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in files():
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message by its full name, as ``inference.ModelInferRequest``."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


def decode(kind: Any, data: bytes) -> Any:
    """A message from its bytes.

    Raises:
        Invalid: They are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Invalid(f"the message is no {kind.DESCRIPTOR.full_name}: {error}") from None
