"""What Spark's tasks say, heard as soon as each has ended: an accumulator that passes on instead of adding up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Heard:
    """An accumulator's parameter: a task gathers what it says, the driver passes it on at once.

    Args:
        deliver: Called at the driver with each tuple that was said, by Spark's own thread: it must not ask Spark.
    """

    def __init__(self, deliver: Callable[..., object] | None = None) -> None:
        self._deliver = deliver

    def zero(self, value: Any) -> list[Any]:
        """Nothing said."""
        return []

    def addInPlace(self, gathered: list[Any], said: list[Any]) -> list[Any]:  # noqa: N802 - Spark's name
        """Gather, or pass on."""
        if self._deliver is None:
            return [*gathered, *said]
        for one in said:
            self._deliver(*one)
        return []

    def __reduce__(self) -> Any:
        return Heard, ()
