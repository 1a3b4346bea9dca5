"""How a gate was decided. Apart from the deciding, so that reading it back imports no statistics."""

from __future__ import annotations

from msgspec import Struct


class GateResult(Struct, frozen=True, kw_only=True):
    """One gate, decided. JSON-able.

    Attributes:
        gate: As written.
        passed: Whether it holds.
        value: What was compared: the metric (of the worst slice), or with a champion the difference
            challenger - champion.
        needed: What it was compared with.
        evidence: One sentence: on which rows, how sure, against what.
        rows: How many rows the value rests on; 0 for what is not measured on rows.
        confidence: How sure the decision is: 0.95 where an interval had to support it, else None.
    """

    gate: str
    passed: bool
    value: float | None
    needed: float
    evidence: str
    rows: int
    confidence: float | None = None
