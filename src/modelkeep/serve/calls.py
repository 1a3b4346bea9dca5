"""Requests on their way through a lane, and the batches they are answered from."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from modelkeep.core.errors import ModelkeepError
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.serve.columns import Array, Rows
from modelkeep.serve.queueing import NORMAL

if TYPE_CHECKING:
    from modelkeep.serve.batching import Lane


class Door(Protocol):
    """How a protocol answers a call. Must not raise for a client that is gone.

    What raises before it has written anything is asked to ``refuse`` the call; after ``hot.Unwritten`` it is not.
    """

    def answer(self, call: Call, batch: Batch) -> None:
        """Write the call's rows of ``batch``, which are ``call.start`` to ``call.start + call.rows.count``."""
        ...

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        """Write the error."""
        ...


class Call:
    """One request on its way through a lane.

    Args:
        deadline: ``time.perf_counter`` after which the answer is of no use; None for never.
        priority: 1 is the most urgent, larger numbers less so; 0 stands for ``NORMAL``, as in Triton's protocol.

    Attributes:
        params: What the model is told beside the rows; none, unless it is a ``CallWithParams``.
    """

    params = b""
    __slots__ = ("began", "deadline", "door", "expected", "id", "key", "priority", "rows", "sink", "start")

    def __init__(
        self,
        rows: Rows,
        id: str,
        door: Door,
        sink: Any,
        key: str | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> None:
        self.rows = rows
        self.id = id
        self.key = key
        self.door = door
        self.sink = sink
        self.deadline = deadline
        self.priority = priority or NORMAL
        self.began = perf_counter()
        self.expected = 0.0
        self.start = 0


class CallWithParams(Call):
    """A call with params, as ``formats.params.packed`` makes them. Those without pay nothing for them."""

    __slots__ = ("params",)

    def __init__(self, params: bytes, *about: Any) -> None:
        super().__init__(*about)
        self.params = params


class Batch:
    """Rows answered together.

    Attributes:
        lane: Who answered.
        inputs: What was given, checked.
        outputs: Arrays by output name, first axis rows; perhaps ``formats.outputs.Outputs``.
        rendered: Room for doors to keep what they make once per batch.
        times: ``perf_counter`` when stacking began, when the model began and when it had ended.
    """

    __slots__ = ("inputs", "lane", "outputs", "rendered", "times")

    def __init__(
        self, lane: Lane, inputs: Blocks, outputs: Mapping[str, Array], times: tuple[float, float, float]
    ) -> None:
        self.times = times
        self.lane = lane
        self.inputs = inputs
        self.outputs = outputs
        self.rendered: dict[str, Any] = {}
