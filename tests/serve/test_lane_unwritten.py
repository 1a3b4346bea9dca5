"""A lane whose door raises: each call has an end, and nothing counts as under way for ever."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_kit import Made

from modelkeep.core.clock import SystemClock
from modelkeep.core.errors import ModelkeepError
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Rows
from modelkeep.serve.hot import Unwritten
from modelkeep.serve.metrics import Counters


class Door:
    """Raises on some calls; ``call.sink`` says how."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.refused: list[str] = []

    def answer(self, call: Call, batch: Batch) -> None:
        if call.sink == "half":
            raise Unwritten
        if call.sink != "fine":
            raise ValueError("an answer that cannot be encoded")
        self.answered.append(call.id)

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        if call.sink == "hopeless":
            raise ValueError("nor a refusal")
        self.refused.append(call.id)


@pytest.mark.parametrize(
    ("rows", "answered", "refused"),
    [(3, ["0", "4"], ["1"]), (2, [], ["0", "1", "4"])],
    ids=["answers", "refusals"],
)
def test_every_call_has_an_end(
    regression: Made, caplog: pytest.LogCaptureFixture, rows: int, answered: list[str], refused: list[str]
) -> None:
    door = Door()

    async def story() -> tuple[Lane, Counters]:
        loaded, counters = regression.loaded(), Counters()
        lane = Lane(
            loaded,
            Channel("e", "m", 1, "stable", loaded.signature),
            counters,
            loop=asyncio.get_running_loop(),
            clock=SystemClock(),
            executor=pool,
        )
        for number, kind in enumerate(("fine", "bad", "half", "hopeless", "fine")):
            cells = [1.0, 2.0, 3.0] if rows == 3 else [1.0, "text", 3.0]
            lane.submit(Call(Rows(1, cells=cells), str(number), door, kind))
        for _ in range(2000):
            if lane.idle:
                break
            await asyncio.sleep(0.005)
        return lane, counters

    with ThreadPoolExecutor(1) as pool:
        lane, counters = asyncio.run(story())
    assert lane.idle
    assert (door.answered, sorted(door.refused)) == (answered, refused if rows == 3 else sorted([*refused, "2"]))
    assert (counters.requests, counters.errors) == (len(answered), 5 - len(answered))
    assert "nor could it be refused" in caplog.text
