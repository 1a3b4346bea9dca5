"""Which columns of a window changed, at a chosen rate of false alarms, and how, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from modelkeep.monitor.reference import Reference, Watched, describe
from modelkeep.stats.outputs import Ints
from modelkeep.stats.profile import Column, Profile
from modelkeep.stats.tests import Test, benjamini_hochberg, compare, rare

FEWEST_ROWS = 30
"""A window with fewer rows is not judged."""


class ColumnDrift(msgspec.Struct, frozen=True, kw_only=True):
    """One column of one window.

    Attributes:
        column: Its name.
        drifted: Whether it is named at the chosen rate.
        p: Chance of a change as large when nothing changed, over the column's tests.
        test: Which test was strongest: ``distribution``, ``missing`` or ``outside`` (new categories, or numbers
            beyond the training table's).
        statistic: Of that test.
        distance: Size of the change in [0, 1] (see ``stats.tests.Test``).
        text: The change in words.
    """

    column: str
    drifted: bool
    p: float
    test: str
    statistic: float
    distance: float
    text: str


def detect(
    reference: Reference, window: Mapping[str, Ints], false_alarms: float, profile: Profile | None = None
) -> list[ColumnDrift]:
    """Test every column of a window.

    The chance that any column of a window is named although nothing changed is at most ``false_alarms``: each
    column's tests are joined by Bonferroni, columns by Benjamini and Hochberg.

    Args:
        window: From ``reference.count``.
        false_alarms: Rate per window, in (0, 1).
        profile: Of the window, for the words.

    Returns:
        Every tested column, the most surprising first; none when the window has fewer than 30 rows.
    """
    tested = []
    for name, counts in window.items():
        watched = reference.columns[name]
        if counts[:-1].sum() < FEWEST_ROWS:
            continue
        tests = _tests(watched, counts)
        which = min(tests, key=lambda kind: tests[kind].p)
        tested.append((name, which, tests[which], min(1.0, tests[which].p * len(tests))))
    named = benjamini_hochberg([p for *_, p in tested], false_alarms)
    before = reference.profile if any(named) else Profile()
    found = []
    for (name, which, test, p), drifted in zip(tested, named, strict=True):
        text = ""
        if drifted:
            now = profile.columns.get(name) if profile else None
            text = words(reference.columns[name], window[name], which, before.columns.get(name), now)
        found.append(
            ColumnDrift(
                column=name,
                drifted=drifted,
                p=p,
                test=which,
                statistic=test.statistic,
                distance=test.distance,
                text=text,
            )
        )
    return sorted(found, key=lambda one: one.p)


def evidence(found: list[ColumnDrift], rows: int, false_alarms: float) -> dict[str, Any]:
    """A finding's evidence: a sentence, and each changed column."""
    changed = [one for one in found if one.drifted]
    shown = "; ".join(f"{one.column}: {one.text}" for one in changed[:3])
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return {
        "text": f"{len(changed)} of {len(found)} inputs changed: {shown}{more}",
        "rows": rows,
        "false_alarms": false_alarms,
        "columns": [
            {name: getattr(one, name) for name in one.__struct_fields__ if name != "drifted"} for one in changed
        ],
    }


def words(watched: Watched, counts: Ints, which: str, before: Column | None, now: Column | None) -> str:
    """The change in plain words."""
    rows, gone, outside = int(counts[:-1].sum()), int(counts[-2]), int(counts[-1])
    if which == "missing":
        return f"missing {_share(sum(watched.missing), sum(watched.rows))} -> {_share(gone, rows)}"
    if watched.kind == "categorical":
        return _words_of_categories(watched, counts, now)
    if which == "outside":
        return f"{_share(outside, rows)} outside {describe(watched.low)} to {describe(watched.high)}"
    if before is None or now is None or watched.kind == "length":
        mean_before, mean_now = (c.moments.mean if c else float("nan") for c in (before, now))
        return f"mean length {describe(mean_before)} -> {describe(mean_now)}"
    middle = " -> ".join(describe(column.quantile(0.5)) for column in (before, now))
    spans = " -> ".join(f"{describe(c.quantile(0.1))} to {describe(c.quantile(0.9))}" for c in (before, now))
    return f"median {middle}, middle 80 % {spans}"


def _words_of_categories(watched: Watched, counts: Ints, now: Column | None) -> str:
    seen = counts[:-2].astype(np.float64)
    after, expected = seen / max(seen.sum(), 1), np.array(watched.counts) / max(sum(watched.counts), 1)
    parts = []
    if now is not None and watched.known:
        known = set(watched.known)
        gained = [str(value) for value, _ in now.frequent.top(200) if _text(value) not in known]
        if gained:
            parts.append("new " + ", ".join(gained[:3]))
    cells = [cell for cell in np.argsort(-np.abs(after - expected)) if cell < len(watched.categories)]
    lost = [watched.categories[c] for c in cells if seen[c] == 0 and expected[c] * seen.sum() >= 5]
    if lost:
        parts.append("gone " + ", ".join(lost[:3]))
    moved = [c for c in cells[:3] if seen[c] > 0 and abs(after[c] - expected[c]) > 0.005]
    parts += [f"{watched.categories[c]} {expected[c]:.1%} -> {after[c]:.1%}" for c in moved]
    return ", ".join(parts) or f"other values {expected[-1]:.1%} -> {after[-1]:.1%}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def _tests(watched: Watched, counts: Ints) -> dict[str, Test]:
    cells, gone, outside = counts[:-2], int(counts[-2]), int(counts[-1])
    present = int(cells.sum())
    tests = {
        "distribution": compare(cells, watched.spread),
        "missing": rare(gone, present + gone, watched.missing, watched.rows),
    }
    if watched.kind != "categorical" or watched.known:
        held = np.subtract(watched.rows, watched.missing)
        tests["outside"] = rare(outside, present, watched.outside, held)
    return tests
