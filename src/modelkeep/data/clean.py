"""Cleaning: every step in order over a table's rows, and what each did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from msgspec import Struct, structs

from modelkeep.core.ports import Progress, Silent
from modelkeep.data.learning import learn
from modelkeep.data.streams import SAMPLES, Held, Note, Stream
from modelkeep.spec import steps


class StepReport(Struct, frozen=True, kw_only=True):
    """What one cleaning step did.

    Attributes:
        step: Its name.
        said: What was declared, without defaults.
        rows: Before the step.
        touched: Rows dropped, changed or set aside.
        left: Rows after the step.
        before: Up to five of the touched rows, the step's columns first.
        after: The same rows afterwards; empty for dropped ones.
    """

    step: str
    said: dict[str, Any]
    rows: int
    touched: int
    left: int
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


class Cleaned(Struct, frozen=True, kw_only=True):
    """A cleaned table.

    Attributes:
        table: The rows left, in their order.
        aside: Rows that a step could not work on, with their ``reason``, one table per step.
        reports: Per step.
        renamed: New names by old.
    """

    table: pa.Table
    aside: tuple[pa.Table, ...]
    reports: tuple[StepReport, ...]
    renamed: dict[str, str]


def clean(
    declared: Sequence[steps.CleanStep], table: pa.Table, time: str = "", progress: Progress | None = None
) -> Cleaned:
    """Run the steps in order over one table.

    Args:
        declared: The steps.
        table: All rows.
        time: Column that orders them, for filling forward.

    Raises:
        Invalid: A step names no such column, or does not fit its type.
    """
    made, renamed = cleaned(declared, Held.of(table), time, progress)
    assert isinstance(made, Held)
    notes = made.notes[0]
    return Cleaned(
        table=made.tables[0],
        aside=tuple(note.aside for note in notes if note.aside is not None),
        reports=tuple(
            report(tag(step), structs.asdict(step), [note]) for step, note in zip(declared, notes, strict=True)
        ),
        renamed=renamed,
    )


def cleaned(
    declared: Sequence[steps.CleanStep], stream: Stream, time: str = "", progress: Progress | None = None
) -> tuple[Stream, dict[str, str]]:
    """The stream with the steps on it, each with what it must know of all rows; and new names by old.

    Raises:
        Invalid: A step names no such column, or does not fit its type.
    """
    renamed: dict[str, str] = {}
    watcher = progress or Silent()
    for index, step in enumerate(declared):
        watcher.step("clean", index, len(declared), tag(step))
        stream = stream.then(learn(step, stream, f"data.clean[{index}]", renamed.get(time, time)))
        if isinstance(step, steps.Rename):
            old = {new: old for old, new in renamed.items()}
            renamed |= {old.get(name, name): new for name, new in step.columns.items()}
    if declared:
        watcher.step("clean", len(declared), len(declared))
    return stream, renamed


def tag(step: steps.CleanStep) -> str:
    """The step's name."""
    return str(step.__struct_config__.tag)


def report(name: str, said: dict[str, Any], notes: Sequence[Note]) -> StepReport:
    """What a step did to all pieces together."""
    rows, touched = sum(note.rows for note in notes), sum(note.touched for note in notes)
    drop = any(note.drop for note in notes)
    before = [row for note in notes for row in note.before][:SAMPLES]
    after = [row for note in notes for row in note.after][:SAMPLES]
    left = rows - (touched if drop else 0)
    return StepReport(step=name, said=said, rows=rows, touched=touched, left=left, before=before, after=after)
