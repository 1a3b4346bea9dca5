"""``labels``: the truth about predictions, arriving later."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import print_json, say
from modelkeep.cli.when import parse_moment
from modelkeep.core.errors import Invalid

if TYPE_CHECKING:
    from modelkeep.lifecycle.keep import Keep

_BATCH = 50_000


@click.group(epilog=example("modelkeep labels post 01JD3M=1", "modelkeep labels import labels.parquet"))
def labels() -> None:
    """Send the truth about past predictions; it is joined by prediction id."""


@labels.command(
    epilog=example(
        "modelkeep labels post 01JD3M7Z=1 01JD3M80=0",
        "modelkeep labels post 01JD3M7Z=spam            # what is no JSON is text",
        "modelkeep labels post batch-1/0=3.5 --at 2013-02-01T12:00",
    )
)
@click.argument("pairs", nargs=-1, required=True, metavar="ID=LABEL...")
@click.option("--at", help="When the truth was known, ISO 8601 UTC; now unless given.")
@file_option
@json_option
def post(pairs: tuple[str, ...], at: str | None, file: Path, as_json: bool) -> None:
    """Send a few labels, each as ID=LABEL."""
    given = []
    for pair in pairs:
        name, sign, value = pair.rpartition("=")
        if not sign or not name:
            raise Invalid(f"{pair!r} is not ID=LABEL")
        given.append((name, _as_json(value)))
    with opened(file) as keep:
        time = parse_moment(at) if at else keep.clock.now()
        count = _put(keep, [(name, value, time) for name, value in given])
    _tell(count, as_json)


@labels.command(
    "import",
    epilog=example(
        "modelkeep labels import labels.csv             # columns prediction_id, label and perhaps time",
        "modelkeep labels import truth.parquet --id flight --label late",
    ),
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--id", "id_column", default="prediction_id", show_default=True, help="Column of the ids.")
@click.option("--label", "label_column", default="label", show_default=True, help="Column of the labels.")
@click.option("--time", "time_column", default="time", show_default=True, help="Column of the times, if any.")
@file_option
@json_option
def import_labels(
    *, source: Path, id_column: str, label_column: str, time_column: str, file: Path, as_json: bool
) -> None:
    """Send the labels in a CSV, Parquet, JSON lines or Arrow file."""
    from modelkeep.cli.tables import read_table

    found = read_table(source)
    missing = [name for name in (id_column, label_column) if name not in found.column_names]
    if missing:
        have = ", ".join(found.column_names)
        raise Invalid(f"{source} has no column {' or '.join(map(repr, missing))}; it has {have}")
    count = 0
    with opened(file) as keep:
        now = keep.clock.now()
        names = [id_column, label_column, *([time_column] if time_column in found.column_names else [])]
        for batch in found.select(names).to_batches(max_chunksize=_BATCH):
            count += _put(keep, list(_rows(batch.to_pydict(), id_column, label_column, time_column, now)))
    _tell(count, as_json)


def _rows(
    columns: dict[str, list[Any]], id_column: str, label_column: str, time_column: str, now: float
) -> Iterator[tuple[str, str, float]]:
    times = columns.get(time_column) or [now] * len(columns[id_column])
    for name, label, time in zip(columns[id_column], columns[label_column], times, strict=True):
        if name is None or label is None or (isinstance(label, float) and math.isnan(label)):
            continue
        yield str(name), msgspec.json.encode(label).decode(), _seconds(time, now)


def _seconds(value: Any, now: float) -> float:
    if value is None:
        return now
    if isinstance(value, str):
        return parse_moment(value)
    if hasattr(value, "timestamp"):
        from datetime import UTC

        return float((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return float(value)


def _as_json(text: str) -> str:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = text
    if isinstance(value, list | dict) or value is None:
        raise Invalid(f"{text!r} cannot be a label; expected a number, true, false or text")
    return msgspec.json.encode(value).decode()


def _put(keep: Keep, rows: list[tuple[str, str, float]]) -> int:
    from modelkeep.registry.captures import put_labels

    return keep.db.write(lambda conn: put_labels(conn, rows))


def _tell(count: int, as_json: bool) -> None:
    if as_json:
        print_json({"labels": count})
    else:
        say(f"kept {count:,} labels")
