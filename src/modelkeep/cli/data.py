"""``data``: snapshots of the rows models are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.common import declared, example, file_option, json_option, model_of, opened
from modelkeep.cli.output import moment, print_json, say, short, table, text
from modelkeep.cli.progress import watching
from modelkeep.core.errors import NotFound

if TYPE_CHECKING:
    from modelkeep.data.diffs import SnapshotDiff


@click.group(epilog=example("modelkeep data list", "modelkeep data show flights", "modelkeep data quarantine"))
def data() -> None:
    """List, show, compare, grow and export snapshots."""


@data.command("list", epilog=example("modelkeep data list", "modelkeep data list flights --json"))
@click.argument("name", required=False)
@file_option
@json_option
def list_snapshots(name: str | None, file: Path, as_json: bool) -> None:
    """List snapshots, oldest first; of a NAME."""
    from modelkeep.registry import snapshots

    with opened(file) as keep, keep.db.read() as conn:
        names = [name] if name else snapshots.names(conn)
        found = [record for each in names for record in snapshots.named(conn, each)]
    if name and not found:
        raise NotFound(f"there is no snapshot named {name!r}")
    if as_json:
        print_json({"snapshots": found})
        return
    if not found:
        say("no snapshot yet; one is taken by [bold]modelkeep apply[/]")
        return
    table(
        ("name", "digest", "taken (UTC)", "rows", "partitions", "parent"),
        (
            (
                item.name,
                short(item.digest),
                moment(item.created),
                item.rows,
                len(item.fingerprints),
                short(item.parent or ""),
            )
            for item in found
        ),
        right=("rows", "partitions"),
    )


@data.command(
    "show",
    epilog=example("modelkeep data show      # the newest of the declared model", "modelkeep data show 3f9a2c"),
)
@click.argument("ref", required=False, metavar="[NAME|DIGEST]")
@file_option
@json_option
def show_snapshot(ref: str | None, file: Path, as_json: bool) -> None:
    """Show a snapshot: columns, types, missing values, ranges, distributions."""
    from modelkeep.cli.snapshots import find
    from modelkeep.data.buckets import skewed
    from modelkeep.data.snapshots import Snapshots

    with opened(file) as keep:
        with keep.db.read() as conn:
            record = find(conn, model_of(ref, file))
        store = Snapshots(keep.db, keep.blobs)
        taken = store.get(record.digest)
        summary = store.profile(taken).summary()
    uneven = skewed(taken.bucket_rows)
    if as_json:
        print_json({"snapshot": record, "profile": summary, "buckets": taken.bucket_rows, "skewed": uneven})
        return
    say(f"[bold]{text(record.name)}[/] {record.digest}")
    say(f"{record.rows:,} rows in {len(taken.parts):,} parts, taken {moment(record.created)} UTC")
    if taken.bucket_rows:
        counts = sorted(taken.bucket_rows.values())
        say(f"{len(counts)} buckets of {counts[0]:,} to {counts[-1]:,} rows")
    for skew in uneven[:5]:
        say(
            f"[yellow]bucket {skew.bucket} holds {skew.share:.0%} of the rows, {skew.times:.1f} times its share[/]"
        )
    columns = summary.get("columns", {})
    table(
        ("column", "kind", "missing", "distinct", "min", "mean", "max", "most frequent"),
        (_column(name, of) for name, of in columns.items()),
        right=("missing", "distinct", "min", "mean", "max"),
    )


def _column(name: str, of: dict[str, Any]) -> tuple[Any, ...]:
    top = of.get("top")
    shown = ("kind", "missing", "distinct", "min", "mean", "max")
    return (name, *(of.get(key) for key in shown), top[0][0] if top else None)


@data.command(
    epilog=example(
        "modelkeep data append                     # snapshot what is new in the source",
        "modelkeep data append late-rows.parquet   # rows that come from elsewhere",
    )
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@file_option
@json_option
def append(files: tuple[Path, ...], file: Path, as_json: bool) -> None:
    """Snapshot the source again, reading only new or changed partitions; or add the rows of FILES."""
    from modelkeep.data.snapshots import Snapshots

    declaration = declared(file)
    with opened(file, declaration) as keep, watching(quiet=as_json) as progress:
        store = Snapshots(keep.db, keep.blobs)
        name, now = declaration.model, keep.clock.now()
        before = store.latest(name)
        if before is None or not files:
            taken = store.take(
                declaration.data, name, keep.base, now, progress, engine=lambda: keep.engine(declaration)
            )
        for given in files:
            taken = store.append(name, given, now)
    new = taken.rows - (before.rows if before else 0)
    if as_json:
        print_json({"digest": taken.digest, "rows": taken.rows, "new_rows": new})
    elif before is not None and before.digest == taken.digest:
        say(f"nothing new: {taken.rows:,} rows, {short(taken.digest)}")
    else:
        say(f"{taken.rows:,} rows ({new:+,}), snapshot {short(taken.digest)}")


@data.command(epilog=example("modelkeep data diff 3f9a2c flights", "modelkeep data diff 3f9a2c 77be01 --json"))
@click.argument("before")
@click.argument("after")
@file_option
@json_option
def diff(before: str, after: str, file: Path, as_json: bool) -> None:
    """Compare two snapshots: rows (by the declared key), schema, drift per column."""
    from modelkeep.cli.snapshots import find
    from modelkeep.data.snapshots import Snapshots

    keys = declared(file).keys if file.is_file() else ()
    with opened(file) as keep:
        with keep.db.read() as conn:
            old, new = find(conn, before), find(conn, after)
        store = Snapshots(keep.db, keep.blobs)
        one, two = store.get(old.digest), store.get(new.digest)
        shared = set(one.schema.names) & set(two.schema.names)
        found = store.diff(one, two, keys if set(keys) <= shared else ())
    if as_json:
        print_json(found)
    else:
        _print_difference(found)


def _print_difference(found: SnapshotDiff) -> None:
    say(f"[bold]{short(found.before)} → {short(found.after)}[/]: {found.rows[0]:,} → {found.rows[1]:,} rows")
    for sign, colour, what, rows in (
        ("+", "green", "added", found.rows_added),
        ("-", "red", "removed", found.rows_removed),
        ("~", "yellow", "changed", found.rows_changed or 0),
    ):
        if rows:
            say(f"  [{colour}]{sign} {rows:,} rows {what}[/]")
        for row in found.examples.get(what, ()) if rows else ():
            say(f"      [dim]{text(', '.join(f'{name}={value}' for name, value in row.items()))}[/]")
    for name, kind in found.columns_added.items():
        say(f"  [green]+ column {text(name)} {kind}[/]")
    for name, kind in found.columns_removed.items():
        say(f"  [red]- column {text(name)} {kind}[/]")
    for name, (was, now) in found.columns_changed.items():
        say(f"  [yellow]~ column {text(name)} {was} → {now}[/]")
    moved = [item for item in found.drift if item.changed]
    if moved:
        table(
            ("column", "distance", "p"),
            ((item.column, item.distance, item.p) for item in moved),
            title="distributions that moved",
            right=("distance", "p"),
        )
    elif found.drift:
        say("no distribution moved beyond chance")


@data.command(
    epilog=example(
        "modelkeep data export flights flights.parquet",
        "modelkeep data export 3f9a2c sample.csv --columns carrier,late",
        "modelkeep data export flights lake/flights --format delta",
        "modelkeep data export flights s3://lake/flights --format delta",
    )
)
@click.argument("ref", metavar="NAME|DIGEST")
@click.argument("out")
@click.option("--columns", help="Only these, separated by commas.")
@click.option("--format", "kind", type=click.Choice(["delta"]), help="Make a Delta table in a folder instead.")
@file_option
@json_option
def export(ref: str, out: str, columns: str | None, kind: str | None, file: Path, as_json: bool) -> None:
    """Write a snapshot's rows to a file (.parquet, .csv, .jsonl or .arrow) or as a Delta table.

    OUT is a path, or an object store's URL.
    """
    import pyarrow as pa

    from modelkeep.cli.snapshots import find
    from modelkeep.data.places import write_at
    from modelkeep.data.snapshots import Snapshots
    from modelkeep.data.writers import write_delta

    wanted = [name.strip() for name in columns.split(",")] if columns else None
    with opened(file) as keep:
        with keep.db.read() as conn:
            record = find(conn, ref)
        store = Snapshots(keep.db, keep.blobs)
        found = store.get(record.digest)
        if kind == "delta":
            schema = found.schema if wanted is None else pa.schema([found.schema.field(name) for name in wanted])
            rows = write_delta(store.tables(found, wanted), schema, out)
        else:
            rows = write_at(out, store.tables(found, wanted))
    if as_json:
        print_json({"file": out, "rows": rows})
    else:
        say(f"wrote {rows:,} rows to {text(out)}")


@data.command(epilog=example("modelkeep data quarantine", "modelkeep data quarantine --out failing.csv"))
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all of them to a file.")
@click.option("--limit", type=int, default=20, show_default=True, help="Show at most so many.")
@file_option
@json_option
def quarantine(name: str | None, out: Path | None, limit: int, file: Path, as_json: bool) -> None:
    """Show the rows that failed the data checks, each with the reason."""
    from modelkeep.data.writers import write_tables
    from modelkeep.lifecycle.tables import open_table
    from modelkeep.store import stages

    model = model_of(name, file)
    with opened(file) as keep:
        with keep.db.read() as conn:
            done = stages.latest(conn, model, "prepare")
        if done is None:
            raise NotFound(f"model {model!r} has not been prepared yet", hint="run 'modelkeep apply' first")
        digest = done[1].get("quarantine")
        rows = open_table(keep.blobs, digest) if digest else None
    count = rows.num_rows if rows is not None else 0
    if out is not None and rows is not None:
        write_tables([rows], out)
    shown = rows.slice(0, limit).to_pylist() if rows is not None else []
    if as_json:
        print_json({"model": model, "rows": count, "sample": shown, "file": str(out) if out and count else None})
        return
    if rows is None or not count:
        say("no row is in quarantine")
        return
    table(rows.column_names, (tuple(row.values()) for row in shown), title=f"{count:,} rows in quarantine")
    if out is not None:
        say(f"wrote all of them to {text(out)}")
