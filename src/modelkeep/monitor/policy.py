"""What the declaration says about watching, as numbers."""

from __future__ import annotations

from msgspec import Struct

from modelkeep.spec.declaration import Declaration
from modelkeep.spec.units import rate, seconds


class Policy(Struct, frozen=True, kw_only=True):
    """How served traffic is watched.

    Attributes:
        window: Seconds of a window; windows are ``[k * window, (k + 1) * window)`` of clock time.
        false_alarms: Chance per window of a finding although nothing changed, for each kind of finding.
        metric: Live metric; empty takes that of the held-out evaluation, or one by task.
        min_labels: Fewest labels before a window's metric is judged.
        grace: Seconds to wait after a window's end. Rows that come later still are counted: the window is closed
            again.
    """

    window: float
    false_alarms: float = 0.001
    metric: str = ""
    min_labels: int = 50
    grace: float = 2.0


def policy(declaration: Declaration) -> Policy:
    """Read the declaration's ``monitor``."""
    watch = declaration.monitor
    return Policy(
        window=seconds(watch.window),
        false_alarms=rate(watch.drift.false_alarms),
        metric=watch.metric or declaration.train.metric,
        min_labels=watch.min_labels,
    )
