"""The table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: What was asked.
        server: Who answered.
        value: In ``unit``, larger or smaller being better as ``target`` says.
        p50, p99: Milliseconds; None where they say nothing.
        ratio: Ours by theirs; None for our own.
        cpu: Processor microseconds of the server for each request: what is left to compare on a busy machine.
        cpu_ratio: Theirs by ours; None for our own.
        target: As ``>= 35`` of the ratio, or of the value where there is no ratio; empty for none.
    """

    case: str
    server: str
    value: float
    unit: str = "requests/s"
    p50: float | None = None
    p99: float | None = None
    ratio: float | None = None
    target: str = ""
    cpu: float | None = None
    cpu_ratio: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        found = self.value if self.ratio is None else self.ratio
        return found >= float(bound) if sign == ">=" else found <= float(bound)

    def to_builtins(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "met": self.met}


def show(rows: Sequence[Row]) -> None:
    """Print one line for each measurement."""
    print(
        f"{'case':34}{'server':12}{'value':>12} {'unit':12}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}"
        f"{'cpu us':>9}{'ratio':>8}  target"
    )
    for row in rows:
        p50, p99, cpu = (_cell(value, 9) for value in (row.p50, row.p99, row.cpu))
        ratio, less = (_cell(value, 8) for value in (row.ratio, row.cpu_ratio))
        met = {None: "", True: "met", False: "NOT MET"}[row.met]
        value = f"{row.value:12,.1f} {row.unit:12}"
        print(f"{row.case:34}{row.server:12}{value}{p50}{p99}{ratio}{cpu}{less}  {row.target} {met}")


def _cell(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.2f}"
