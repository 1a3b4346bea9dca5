"""The calls that wait in front of a version: who is let in, who goes first, who is given up.

A queue that grows faster than it is served answers everybody too late. So a call is let in only if it can be
expected to be answered within the endpoint's budget, by what the batches before it took; otherwise it is refused
at once, which costs little, and those let in are answered in time (load shedding: Beyer et al., Site Reliability
Engineering, O'Reilly 2016, chapter 21).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from modelkeep.core.errors import Overloaded, TooLate
from modelkeep.serve.columns import Rows
from modelkeep.serve.cost import Cost
from modelkeep.serve.limits import Limits
from modelkeep.serve.turns import Turns

MAX_WAITING = 16_384
NORMAL = 5
"""The priority of calls that name none."""
_SURELY = 0.5
_SHARE = 0.6
_CALM = 0.1
_MOST_BIAS = 2.0


class Waits(Protocol):
    """What a queue needs to know of a call."""

    began: float
    deadline: float | None
    expected: float
    params: bytes
    priority: int
    rows: Rows


C = TypeVar("C", bound=Waits)


class Queue(Generic[C]):
    """Belongs to the event loop's thread.

    Args:
        endpoint: For messages.
        limits: Of the endpoint.
        cost: What batches take; kept up to date by whoever predicts.
        turns: Of the loop: what calls waited in their sockets is part of their time.

    Attributes:
        calls: Those that wait, in the order in which they came.
        rows: Theirs together.
        free_at: ``time.perf_counter`` at which the batch under way can be expected to end.
        per_call: Seconds that decoding and answering one request take the loop.
        in_loop: Whether batches run in the loop.
        ranked: Whether any call has ever named a priority: then a call is read before it is refused.
        usual: Rows of a call, on average.
        bias: How much longer calls take than was expected when they came: whatever else this machine does.
        most: Rows of a batch that takes a quarter of the budget.
        varied: Whether any call that waits may have params: then a batch is of calls with equal ones.
        patient: Whether calls wait for the model to be loaded: then they are let in however long that takes.
    """

    __slots__ = (
        "_calm",
        "_dated",
        "_mixed",
        "_refused",
        "_sure",
        "bias",
        "calls",
        "cost",
        "endpoint",
        "free_at",
        "in_loop",
        "limits",
        "most",
        "patient",
        "per_call",
        "ranked",
        "rows",
        "turns",
        "usual",
        "varied",
    )

    def __init__(self, endpoint: str, limits: Limits, cost: Cost, turns: Turns | None = None) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.cost = cost
        self.turns = turns or Turns()
        self.calls: list[C] = []
        self.rows = 0
        self.free_at = 0.0
        self.per_call = 0.0
        self.in_loop = True
        self.ranked = False
        self.usual = 1.0
        self.bias = 1.0
        self.most = limits.max_rows
        self.patient = False
        self.varied = False
        self._refused = -math.inf
        self._calm = _CALM * limits.budget
        self._sure = 0
        self._dated = self._mixed = False

    def reckoned(self, now: float, rows: int, calls: int, count: int) -> float:
        """Seconds in which a call of ``count`` rows should be answered behind ``rows`` of ``calls`` others."""
        cost = self.cost
        fixed = 0.0 if cost.fixed == math.inf else cost.fixed
        batches = max(1.0, (rows + count) / max(self.most, self.usual))
        expected = self.per_call * calls + fixed * batches + cost.per_row * (rows + count)
        return expected + self.free_at - now if self.free_at > now else expected

    def excess(self, now: float, rows: int, calls: int, count: int) -> float:
        """Seconds by which a call of ``count`` rows would exceed the budget behind ``rows`` of ``calls`` others.

        A call may always wait for one batch of its own size: a version slower than its budget answers none the
        less. Not above zero means that there is room.
        """
        if self.patient:
            return 0.0
        cost = self.cost
        fixed = 0.0 if cost.fixed == math.inf else cost.fixed
        room = _SHARE * self.limits.budget / self.bias
        # a call waits in its socket for the rest of one turn, and until it is read in the next
        expected = 2 * self.turns.standing + self.reckoned(now, rows, calls, count)
        return expected - max(room, 2 * (fixed + cost.per_row * count))

    def answered(self, call: C, now: float) -> None:
        """Compare what was expected of a call with what came true: quick to see that it takes longer."""
        ratio = (now - call.began) / max(call.expected, _CALM * self.limits.budget)
        weight = 0.2 if ratio > self.bias else 0.05
        self.bias = max(1.0, self.bias + weight * (min(ratio, _MOST_BIAS) - self.bias))

    def expected(self, now: float, count: int) -> float:
        """Seconds until a further call of ``count`` rows can be expected to be answered."""
        cost = self.cost
        fixed = 0.0 if cost.fixed == math.inf else cost.fixed
        rows = self.rows + count
        return (
            fixed * max(1.0, rows / max(self.most, self.usual))
            + cost.per_row * rows
            + max(self.free_at - now, 0.0)
        )

    def surely(self, count: int) -> bool:
        """Whether there is room for ``count`` rows by what was known after the last batch; cheap."""
        return self.rows + count <= self._sure and not self.free_at and self.turns.standing <= self._calm

    def _reckon(self) -> None:
        """How many rows there is room for in any case, each counted as a call of its own, while nothing runs."""
        cost = self.cost
        if cost.fixed == math.inf:
            return
        room, each = _SURELY * self.limits.budget - cost.fixed, cost.per_row + self.per_call
        if each > 0 and cost.per_row > 0:
            span = max(self.limits.budget / 4, 2 * cost.fixed) - cost.fixed
            self.most = min(max(int(span / cost.per_row), 1), self.limits.max_rows)
        self._sure = min(int(room / each), MAX_WAITING - 1) if room > 0 and each > 0 else 0

    def full(self, now: float, count: int = 1) -> Overloaded | None:
        """Why a call of ``count`` rows would be refused; None when there is room."""
        excess = self.unread(now, count)
        return None if excess is None else self.overloaded(excess)

    def unread(self, now: float, count: int) -> float | None:
        """Seconds after which there may be room for a call of ``count`` rows; None when there is."""
        excess = self.excess(now, self.rows, len(self.calls), count)
        if excess <= 0 and len(self.calls) < MAX_WAITING:
            return None
        self._refused = now
        return excess

    def put(self, call: C) -> Sequence[C]:
        """Let a call in.

        Returns:
            Calls that it replaces, because they are less urgent and there is no room for both.

        Raises:
            Overloaded: It could not be answered within the budget.
            TooLate: Its deadline has passed.
        """
        count = call.rows.count
        if call.deadline is None and call.priority == NORMAL and self.surely(count):
            self.calls.append(call)
            self.rows += count
            return ()
        if call.deadline is not None:
            if call.deadline <= call.began:
                raise self.late()
            self._dated = True
        replaced: Sequence[C] = ()
        if not self.surely(count):
            excess = self.excess(call.began, self.rows, len(self.calls), count)
            if excess > 0 or len(self.calls) >= MAX_WAITING:
                replaced = self._make_room(call, excess)
            call.expected = self.reckoned(call.began, self.rows, len(self.calls), count)
        if self.patient:
            call.expected = math.inf
        if call.priority != NORMAL:
            self._mixed = self.ranked = True
        self.calls.append(call)
        self.rows += count
        return replaced

    def _make_room(self, call: C, excess: float) -> Sequence[C]:
        """Take the last of the least urgent calls out until this one fits."""
        below: list[C] = []
        if self._mixed or call.priority < NORMAL:
            below = sorted((other for other in self.calls if other.priority > call.priority), key=_urgency)
        rows, waiting = self.rows, len(self.calls)
        replaced: list[C] = []
        while below and (excess > 0 or waiting >= MAX_WAITING):
            gone = below.pop()
            replaced.append(gone)
            rows, waiting = rows - gone.rows.count, waiting - 1
            excess = self.excess(call.began, rows, waiting, call.rows.count)
        if excess > 0 or waiting >= MAX_WAITING:
            self._refused = call.began
            raise self.overloaded(excess)
        self._drop(replaced)
        return replaced

    def _drop(self, gone: Sequence[C]) -> None:
        if gone:
            names = {id(call) for call in gone}
            self.calls = [call for call in self.calls if id(call) not in names]
            self.rows = sum(call.rows.count for call in self.calls)

    def give_up(self, now: float) -> list[C]:
        """Take out the calls whose deadline has passed."""
        if not self._dated:
            return []
        late = [call for call in self.calls if call.deadline is not None and call.deadline <= now]
        self._drop(late)
        self._dated = any(call.deadline is not None for call in self.calls)
        return late

    def outwaited(self, now: float) -> list[C]:
        """Take out the calls that could not be answered within the budget any more.

        Only where others are refused or go first: a machine that stalled for once answers late rather than not.
        """
        budget = self.limits.budget
        if not self._mixed and self._refused + budget < now:
            return []
        cost = self.cost
        # a version slower than that answers late in any case
        ahead = min(cost.estimate(min(self.rows, self.most)), budget / 2) if cost.fixed < budget / 2 else 0.0
        old = [call for call in self.calls if call.began + budget < now + ahead]
        self._drop(old)
        return old

    def take(self, most: int) -> tuple[list[C], int]:
        """The next batch, the most urgent calls first, and its rows: at most ``most``, but at least one call."""
        if self._mixed:
            self.calls.sort(key=_urgency)
        calls, rows = self.calls, self.rows
        if self.varied and calls:
            calls, rows = self._alike(most)
        elif rows > most:
            rows = place = 0
            for place, call in enumerate(calls):
                count = call.rows.count
                if rows + count > most and place:
                    break
                rows += count
            else:
                place = len(calls)
            self.calls, calls = calls[place:], calls[:place]
            self.rows -= rows
        else:
            self.calls = []
            self.rows = 0
        if not self.calls:
            self._mixed = self._dated = self.varied = False
        if calls:
            self.usual += 0.1 * (rows / len(calls) - self.usual)
        self._reckon()
        return calls, rows

    def _alike(self, most: int) -> tuple[list[C], int]:
        """As ``take``, of the calls whose params are those of the first; the others stay, in their order."""
        params, rows, full = self.calls[0].params, 0, False
        taken: list[C] = []
        left: list[C] = []
        for call in self.calls:
            alike = call.params == params and not full
            full = full or (alike and bool(taken) and rows + call.rows.count > most)
            if alike and not full:
                taken.append(call)
                rows += call.rows.count
            else:
                left.append(call)
        self.calls = left
        self.rows -= rows
        return taken, rows

    def spent(self, seconds: float, calls: int) -> None:
        """The loop has written so many answers in so long; decoding their requests took it about as long."""
        each = 2 * seconds / calls
        self.per_call += 0.05 * (min(each, 10 * self.per_call + 1e-5) - self.per_call)

    def late(self) -> TooLate:
        """What a call is told whose deadline has passed."""
        return TooLate(f"the deadline passed before {self.endpoint!r} could begin")

    def overloaded(self, excess: float = 0.0) -> Overloaded:
        """What a call is told that is not let in, or has to make room."""
        return Overloaded(
            f"{self.endpoint!r} has too many requests waiting and could not answer in time",
            retry_after=max(excess, 0.05),
        )


def _urgency(call: Waits) -> int:
    return call.priority
