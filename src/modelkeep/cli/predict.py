"""``predict``: run a version here, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.common import example, file_option, json_option, opened, split_ref
from modelkeep.cli.output import print_json, say, table, text
from modelkeep.core.errors import Invalid

if TYPE_CHECKING:
    import pyarrow as pa

    from modelkeep.formats.signature import Signature


@click.command(
    epilog=example(
        "modelkeep predict flights new.csv                       # with the champion",
        "modelkeep predict flights@7 new.parquet --out answers.parquet",
        "modelkeep predict flights -v carrier=UA -v distance=1400 -v origin=EWR",
        "cat rows.jsonl | modelkeep predict flights - --json",
    )
)
@click.argument("ref", metavar="MODEL[@VERSION]")
@click.argument("rows", required=False, type=click.Path(path_type=Path))
@click.option("-v", "--value", "values", multiple=True, metavar="NAME=VALUE", help="One input of a single row.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write inputs and answers to a file.")
@click.option("--limit", type=int, default=20, show_default=True, help="Show at most so many rows.")
@file_option
@json_option
def predict(
    *,
    ref: str,
    rows: Path | None,
    values: tuple[str, ...],
    out: Path | None,
    limit: int,
    file: Path,
    as_json: bool,
) -> None:
    """Predict the rows of a file, or one row of values, with a version of a model."""
    from modelkeep.formats import runtimes
    from modelkeep.registry import models
    from modelkeep.spec import loading
    from modelkeep.store.blobs import read_files

    if (rows is None) == (not values):
        raise Invalid("give either a file of rows or values with -v NAME=VALUE")
    model, version = split_ref(ref)
    with opened(file) as keep:
        with keep.db.read() as conn:
            found = models.version(conn, model, version or "champion")
        files = read_files(keep.blobs, found.package)
    signature = runtimes.signature(files)
    given = _one_row(values, signature) if rows is None else _rows(rows, signature)
    said = found.lineage.declaration_text if found.lineage else ""
    trusted = loading.load_text(said).trust if said else ()
    answers = _answers(runtimes.load(files, trusted=trusted), signature, given)
    if out is not None:
        from modelkeep.cli.tables import write_tables

        write_tables([_beside(given, answers)], out)
    if as_json:
        print_json({"version": found.name, "rows": given.num_rows, "predictions": answers})
        return
    if out is not None:
        say(f"wrote {given.num_rows:,} rows predicted by {text(found.name)} to {text(out)}")
        return
    names = list(answers)
    lines = zip(*(answers[name][:limit] for name in names), strict=True)
    table(("row", *names), ((row, *line) for row, line in enumerate(lines)), title=found.name, right=("row",))
    if given.num_rows > limit:
        say(f"... and {given.num_rows - limit:,} more; all of them with --out or --json")


def _one_row(values: tuple[str, ...], signature: Signature) -> pa.Table:
    import msgspec
    import pyarrow as pa

    types = {field.name: field.type for field in signature.inputs}
    row: dict[str, list[Any]] = {}
    for pair in values:
        name, sign, value = pair.partition("=")
        if not sign:
            raise Invalid(f"{pair!r} is not NAME=VALUE")
        row[name] = [value]
        if types.get(name) in ("int64", "float64", "bool"):
            try:
                row[name] = [msgspec.json.decode(value)]
            except msgspec.DecodeError:
                raise Invalid(f"{value!r} is not a {types[name]}", path=name) from None
    return pa.table(row)


def _rows(path: Path, signature: Signature) -> pa.Table:
    """The model's inputs among a file's columns; others, such as the target, are left out."""
    from modelkeep.cli.tables import read_table

    found = read_table(path)
    names = [field.name for field in signature.inputs if field.name in found.column_names]
    return found.select(names)


def _answers(model: Any, signature: Signature, given: pa.Table) -> dict[str, list[Any]]:
    """Outputs by name; a probability for each class by its own name."""
    from modelkeep.formats.validate import Checker

    batch = Checker(signature).check({name: _column(given, name) for name in given.column_names}, given.num_rows)
    found: dict[str, list[Any]] = {}
    for name, values in model.predict(batch).items():
        if values.ndim == 2 and len(signature.classes) == values.shape[1]:
            found |= {
                f"{name}_{label}": values[:, place].tolist() for place, label in enumerate(signature.classes)
            }
        else:
            found[name] = values.tolist()
    return found


def _column(given: pa.Table, name: str) -> Any:
    """Times as NumPy sees them, the rest as plain values."""
    import pyarrow as pa

    column = given.column(name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("us")).to_numpy()
    return column.to_pylist()


def _beside(given: pa.Table, answers: dict[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    joined = given
    for name, values in answers.items():
        joined = joined.append_column(name, pa.array(values))
    return joined
