"""A part's way to a worker and back: one packet out, one answer home, whatever the engine.

Only the standard library at the top, so that a worker sets its share of threads before NumPy and its like start.
"""

from __future__ import annotations

import io
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from modelkeep.core.errors import Invalid

Load = Callable[[], Any]


class Handle(Protocol):
    """A shared object's name. Inside a packet only its place among the packet's handles is written."""

    def __call__(self) -> Any:
        """The object."""
        ...


class Packet(NamedTuple):
    """A function and a part, ready to be sent.

    Attributes:
        content: Pickled.
        handles: The shared objects it refers to, in order.
    """

    content: bytes
    handles: tuple[Handle, ...]


class Answer(NamedTuple):
    """What a worker says of a part.

    Attributes:
        worked: Whether ``content`` is the result; else it is a failure.
        content: Pickled.
        seconds: How long it took, without waiting for its turn.
        kept: A handle to the result, if that stays at the worker; ``content`` is then empty.
    """

    worked: bool
    content: bytes
    seconds: float
    kept: Any = None


class RemoteTraceback(Exception):
    """The traceback of an error in a worker, as text; the error's cause."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def pack(
    fn: Callable[[Any], Any],
    part: Any,
    *,
    pickler: type[pickle.Pickler] = pickle.Pickler,
    shared: type[Any] | tuple[()] = (),
) -> Packet:
    """Pickle a function and its part.

    Args:
        pickler: Standard, or one that sends functions by value.
        shared: The class of handles that are written by their place.

    Raises:
        Invalid: Either cannot be sent.
    """
    handles: list[Handle] = []

    class Packer(pickler):  # type: ignore[misc,valid-type]
        def persistent_id(self, obj: Any) -> int | None:
            if not isinstance(obj, shared):
                return None
            handles.append(obj)
            return len(handles) - 1

    stream = io.BytesIO()
    try:
        Packer(stream, protocol=5).dump((fn, part))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Invalid(
            f"this work cannot be sent to another process: {error}",
            hint="use a function at the top of a module, and parts that can be pickled",
        ) from error
    return Packet(stream.getvalue(), tuple(handles))


def work(content: bytes, loads: Sequence[Load] = ()) -> Answer:
    """Run a packet; in a worker. Everything that may fail is inside, so that a failure never ends the worker.

    Args:
        content: Of the packet.
        loads: What its handles stand for here.
    """
    begun = time.perf_counter()
    try:
        unpacker = _Unpacker(io.BytesIO(content))
        unpacker.loads = loads
        fn, part = unpacker.load()
        return Answer(True, _dumps(fn(part)), time.perf_counter() - begun)
    except (Exception, SystemExit) as error:
        return Answer(False, failure(error), time.perf_counter() - begun)


def opened(answer: Answer) -> Any:
    """The result; or raises the error, with the worker's traceback as its cause."""
    value = pickle.loads(answer.content)  # noqa: S301 - from our own worker
    if answer.worked:
        return value
    raise value.rebuilt()


def failure(error: BaseException) -> bytes:
    """An error as an answer's content; one that cannot be pickled is told in words."""
    told = Failure(error)
    try:
        packed = _dumps(told)
        pickle.loads(packed).rebuilt()  # noqa: S301 - made one line above
    except Exception:
        told.kind, told.args, told.state = RuntimeError, (f"{type(error).__name__}: {error}",), {}
        packed = pickle.dumps(told, protocol=5)
    return packed


class _Unpacker(pickle.Unpickler):
    loads: Sequence[Load] = ()

    def persistent_load(self, pid: Any) -> Load:
        found: Load = self.loads[pid]
        return found


class Failure:
    """An error on its way home."""

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            error = RuntimeError(f"the function called exit({error.code!r})").with_traceback(error.__traceback__)
        self.trace = "".join(traceback.format_exception(error))
        self.kind: type[BaseException] = type(error)
        self.args, self.state = error.args, error.__dict__

    def rebuilt(self) -> BaseException:
        """The same error, without calling its constructor, whose arguments are not known."""
        error = self.kind.__new__(self.kind, *self.args)
        error.args = self.args
        error.__dict__.update(self.state)
        error.__cause__ = RemoteTraceback(self.trace)
        return error


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        for name in ("cloudpickle", "ray.cloudpickle", "pyspark.cloudpickle"):
            if name in sys.modules:
                packed: bytes = sys.modules[name].dumps(value, protocol=5)
                return packed
        raise
