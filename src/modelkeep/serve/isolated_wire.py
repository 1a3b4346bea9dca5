"""What crosses between the serving process and a model's own process: whole batches, through shared memory.

The numbers of a batch lie in memory that both map, so only a head of some fifty bytes crosses the socket. Strings
and objects lie there as MessagePack. One exchange at a time: the answer takes the place of the question.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.errors import ModelkeepError, Problem
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.outputs import Form, formed
from modelkeep.serve.columns import Array

KEPT = 64 << 20
"""Bytes of shared memory kept between batches; after a larger one it is given back."""
_ALIGNED = 64


class Order(Struct, array_like=True, frozen=True):
    """What a process shall run.

    Attributes:
        folder: Of the package, verified.
        trusted: Names and digests that may run on loading.
        memory: Most bytes it may hold.
        label: What it runs, for people.
    """

    folder: str
    trusted: tuple[str, ...]
    memory: int
    label: str


class Note(Struct, array_like=True, frozen=True):
    """The end of a process: its id and exit code, minus the signal that ended it."""

    pid: int
    code: int


class Ask(Struct, array_like=True, frozen=True):
    """A batch: ``numbers`` first, row by row when ``tall``, then ``texts`` bytes of strings; and its params."""

    rows: int
    tall: bool
    whole: bool
    texts: int
    params: bytes


class Column(Struct, array_like=True, frozen=True):
    """One output; objects have the type ``O``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    size: int


class Fault(Struct, array_like=True, frozen=True):
    """An error on its way to the other process."""

    kind: str
    message: str
    hint: str = ""
    traceback: str = ""
    problems: tuple[tuple[str, str], ...] = ()


class Told(Struct, array_like=True, frozen=True):
    """An answer, or the process's first word: that it is ready, or why it cannot be."""

    pid: int
    columns: tuple[Column, ...] = ()
    fault: Fault | None = None
    form: Form | None = None


_encode = msgspec.msgpack.Encoder().encode
_asks = msgspec.msgpack.Decoder(Ask)
_tells = msgspec.msgpack.Decoder(Told)
_texts = msgspec.msgpack.Decoder(list[Any])


class Arena:
    """Memory shared by two processes; grows as either needs it.

    Args:
        fd: Of memory made by another process; -1 makes some.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = _memory() if fd < 0 else fd
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> mmap.mmap:
        """At least the first ``size`` bytes."""
        if self._map is None or len(self._map) < size:
            there = os.fstat(self.fd).st_size
            if there < size:
                there = max(1 << 16, 1 << (size - 1).bit_length())
                os.ftruncate(self.fd, there)
            self._map = mmap.mmap(self.fd, there)  # the old map goes when the last array on it does
        return self._map

    def trim(self) -> None:
        """Give back what a large batch took. Only while the other side waits."""
        if self._map is not None and len(self._map) > KEPT:
            self._map = None
            os.ftruncate(self.fd, KEPT)

    def close(self) -> None:
        """Let go of it."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("modelkeep")
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


# messages


def send(sock: socket.socket, message: Struct) -> None:
    """One message. Raises ``OSError`` when nobody is there."""
    data = _encode(message)
    sock.sendall(len(data).to_bytes(4, "little") + data)


def receive(sock: socket.socket) -> bytes:
    """One message. Raises ``EOFError`` when the other side is gone, ``TimeoutError`` as the socket is set."""
    head = sock.recv(4)
    if len(head) < 4:
        head += exactly(sock, 4 - len(head))
    return exactly(sock, int.from_bytes(head, "little"))


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes. Raises ``EOFError``."""
    if not size:
        return b""
    data = sock.recv(size)
    if len(data) == size:
        return data
    parts = [data]
    while (missing := size - sum(map(len, parts))) > 0:
        if not parts[-1]:
            raise EOFError
        parts.append(sock.recv(missing))
    return b"".join(parts)


# batches


def put_batch(arena: Arena, batch: Batch) -> Ask:
    """Lay a batch into shared memory.

    Raises:
        Invalid: A string is not Unicode text.
    """
    tall = not batch.numbers.flags.c_contiguous and batch.numbers.T.flags.c_contiguous
    numbers = batch.numbers.T if tall else batch.numbers
    texts = b""
    if len(batch.strings):
        try:
            texts = _encode(batch.strings.ravel().tolist())
        except (UnicodeEncodeError, TypeError) as error:
            raise errors.Invalid(f"a string is not Unicode text: {error}", path="inputs") from None
    size = numbers.size * 8
    view = arena.view(size + len(texts) or 1)
    if size:
        np.frombuffer(view, np.float64, numbers.size).reshape(numbers.shape)[...] = numbers
    if texts:
        view[size : size + len(texts)] = texts
    return Ask(batch.rows, tall, batch.whole, len(texts), batch.params)


def take_batch(arena: Arena, layout: Layout, data: bytes) -> Batch:
    """The batch that lies there; its numbers are only valid until the answer is laid over them."""
    ask = _asks.decode(data)
    width = layout.number_rows
    size = width * ask.rows * 8
    view = arena.view(size + ask.texts or 1)
    shape = (ask.rows, width) if ask.tall else (width, ask.rows)
    numbers = np.frombuffer(view, np.float64, width * ask.rows).reshape(shape)
    strings = np.empty((layout.string_rows, ask.rows), dtype=object)
    if ask.texts:
        strings.ravel()[:] = _texts.decode(view[size : size + ask.texts])
    return Batch(layout, numbers.T if ask.tall else numbers, strings, whole=ask.whole, params=ask.params)


# answers


def put_answer(arena: Arena, outputs: Mapping[str, Any], inputs: Array) -> tuple[Column, ...]:
    """Lay the outputs of a model into shared memory, where ``inputs`` still lies.

    Raises:
        ModelkeepError: An output holds what cannot cross.
    """
    columns: list[Column] = []
    parts: list[Any] = []
    at = 0
    for name, values in outputs.items():
        array = np.asarray(values)
        if array.dtype.kind in "fiub":
            part: Any = np.ascontiguousarray(array)
            if np.may_share_memory(part, inputs):
                part = part.copy()
            column = Column(name, array.dtype.str, array.shape, at, part.nbytes)
        else:
            part = _packed(name, array)
            column = Column(name, "O", array.shape, at, len(part))
        columns.append(column)
        parts.append(part)
        at += -(-column.size // _ALIGNED) * _ALIGNED
    view = arena.view(at or 1)
    for column, part in zip(columns, parts, strict=True):
        if column.dtype == "O":
            view[column.at : column.at + column.size] = part
        elif column.size:
            np.frombuffer(view, part.dtype, part.size, column.at)[:] = part.ravel()
    return tuple(columns)


def _packed(name: str, array: Array) -> bytes:
    try:
        return _encode(array.ravel().tolist())
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelkeepError(f"output {name!r} holds values that cannot be sent: {error}") from None


def take_answer(arena: Arena, columns: tuple[Column, ...], form: Form | None = None) -> dict[str, Array]:
    """The outputs that lie there, copied."""
    view = arena.view(max((column.at + column.size for column in columns), default=1) or 1)
    found: dict[str, Array] = {}
    for column in columns:
        if column.dtype == "O":
            values = _texts.decode(view[column.at : column.at + column.size])
            array = np.empty(len(values), dtype=object)
            array[:] = values
        else:
            kind = np.dtype(column.dtype)
            array = np.frombuffer(view, kind, column.size // kind.itemsize, column.at).copy()
        found[column.name] = array.reshape(column.shape)
    return formed(found, form)


def told(data: bytes) -> Told:
    """An answer as received."""
    return _tells.decode(data)


# errors


def fault_of(error: BaseException) -> Fault:
    """An error as it crosses."""
    if isinstance(error, errors.Invalid):
        return Fault("Invalid", "", error.hint, "", tuple((p.path, p.message) for p in error.problems))
    if isinstance(error, errors.MissingExtra):
        return Fault("MissingExtra", error.package, error.extra)
    if isinstance(error, errors.UserCodeFailed):
        return Fault(type(error).__name__, error.message.removesuffix(f"\n{error.traceback}"), "", error.traceback)
    if isinstance(error, ModelkeepError):
        return Fault(type(error).__name__, error.message, error.hint)
    if isinstance(error, MemoryError):
        return Fault("ModelkeepError", f"the model ran out of memory: {error}", "raise deploy.memory")
    return Fault("ModelkeepError", f"the model failed: {type(error).__name__}: {error}")


_RAISED = {kind.__name__: kind for kind in (errors.UserCodeFailed, errors.Unfit)}
_PLAIN = {kind.__name__: kind for kind in (errors.NotFound, errors.Refused, errors.Damaged, errors.Unavailable)}


def error_of(fault: Fault) -> ModelkeepError:
    """The error again."""
    if fault.kind == "Invalid":
        return errors.Invalid([Problem(path, message) for path, message in fault.problems], hint=fault.hint)
    if fault.kind == "MissingExtra":
        return errors.MissingExtra(fault.message, fault.hint)
    if fault.kind in _RAISED:
        return _RAISED[fault.kind](fault.message, traceback=fault.traceback)
    return _PLAIN.get(fault.kind, ModelkeepError)(fault.message, hint=fault.hint)
