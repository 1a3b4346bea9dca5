"""``predict``: run a version here, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modelkeep.cli.common import example, file_option, json_option, opened, split_ref
from modelkeep.cli.output import print_json, say, table, text
from modelkeep.core.errors import Invalid

if TYPE_CHECKING:
    import pyarrow as pa

    from modelkeep.core.ports import Engine
    from modelkeep.formats.signature import Signature
    from modelkeep.lifecycle.keep import Keep
    from modelkeep.registry.models import Version
    from modelkeep.spec.declaration import Declaration

_FORMATS = ("parquet", "csv", "jsonl", "arrow")


@click.command(
    epilog=example(
        "modelkeep predict flights new.csv                       # with the champion",
        "modelkeep predict flights@7 new.parquet --out answers.parquet",
        "modelkeep predict flights -v carrier=UA -v distance=1400 -v origin=EWR",
        "cat rows.jsonl | modelkeep predict flights - --json",
        "modelkeep predict flights@champion --in s3://lake/flights/2026/ --out s3://lake/scored --on-error skip",
        "modelkeep predict flights --in s3://lake/new/ --out s3://lake/scored --engine ray://cluster:10001",
    )
)
@click.argument("ref", metavar="MODEL[@VERSION]")
@click.argument("rows", required=False, type=click.Path(path_type=Path))
@click.option("-v", "--value", "values", multiple=True, metavar="NAME=VALUE", help="One input of a single row.")
@click.option(
    "--in",
    "source",
    metavar="WHERE",
    help="Score every file of a folder, glob or object store's URL, part by part.",
)
@click.option("--out", metavar="WHERE", help="Write inputs and answers to a file; with --in, to a folder or URL.")
@click.option(
    "--format", "suffix", type=click.Choice(_FORMATS), help="With --in: of the output; default the input's."
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="With --in: at a row that the signature refuses, stop; or put it aside with the reason.",
)
@click.option("--engine", metavar="ADDRESS", help="With --in: where to work; default as the version was declared.")
@click.option("--workers", type=click.IntRange(1), help="With --in: processes here; default one per core.")
@click.option("--limit", type=int, default=20, show_default=True, help="Show at most so many rows.")
@file_option
@json_option
def predict(
    *,
    ref: str,
    rows: Path | None,
    values: tuple[str, ...],
    source: str | None,
    out: str | None,
    suffix: str | None,
    on_error: Literal["fail", "skip"],
    engine: str | None,
    workers: int | None,
    limit: int,
    file: Path,
    as_json: bool,
) -> None:
    """Predict rows with a version of a model: of a file, of many files, or one row of values."""
    from modelkeep.formats import runtimes
    from modelkeep.formats.validate import Checker
    from modelkeep.lifecycle.given import as_array, check_given
    from modelkeep.lifecycle.scoring_part import answers
    from modelkeep.store.blobs import read_files

    if (rows is not None) + bool(values) + (source is not None) != 1:
        raise Invalid("give one of: a file of rows, values with -v NAME=VALUE, files with --in")
    with opened(file) as keep:
        found, trusted, declared = _version(keep, ref)
        if source is not None:
            _score(
                keep,
                found,
                trusted,
                source=source,
                out=out,
                suffix=f".{suffix}" if suffix else "",
                on_error=on_error,
                engine=_engine(keep, declared, engine, workers),
                as_json=as_json,
            )
            return
        files = read_files(keep.blobs, found.package)
    signature = runtimes.signature(files)
    given = _one_row(values, signature) if rows is None else _rows(rows, signature)
    check_given(signature, given.column_names)
    columns = {name: as_array(given.column(name)) for name in given.column_names}
    batch = Checker(signature).check(columns, given.num_rows)
    made = answers(runtimes.load(files, trusted=trusted), signature, batch)
    _tell(found.name, given, made, Path(out) if out else None, limit, as_json)


def _engine(keep: Keep, declared: Declaration | None, address: str | None, workers: int | None) -> Engine:
    """Where many files are scored: as asked for, else as declared, else on this machine's cores."""
    if workers is not None:
        if address is not None:
            raise Invalid("give one of --engine and --workers", path="--workers")
        address = f"local://{workers}"
    resources = declared.resources if declared is not None else None
    return keep.engines.get(address or (declared.engine if declared else "local"), None, resources)


def _version(keep: Keep, ref: str) -> tuple[Version, tuple[str, ...], Declaration | None]:
    """The version a reference names, what may run on loading it, and what it was made of."""
    from modelkeep.lifecycle import deploy_foreign
    from modelkeep.registry import models
    from modelkeep.spec import loading

    model, version = split_ref(ref)
    with keep.db.read() as conn:
        found = models.version(conn, model, version or "champion")
        granted = deploy_foreign.granted(conn, model)
    said = found.lineage.declaration_text if found.lineage else ""
    declared = loading.load_text(said) if said else None
    return found, (*granted, *(declared.trust if declared else ())), declared


def _tell(name: str, given: pa.Table, made: dict[str, Any], out: Path | None, limit: int, as_json: bool) -> None:
    """Write or print the answers."""
    from modelkeep.data.writers import write_tables
    from modelkeep.lifecycle.scoring_part import beside

    if out is not None:
        write_tables([beside(given, made)], out)
    answers = {key: _plain(values) for key, values in made.items()}
    if as_json:
        print_json({"version": name, "rows": given.num_rows, "predictions": answers})
        return
    if out is not None:
        say(f"wrote {given.num_rows:,} rows predicted by {text(name)} to {text(out)}")
        return
    lines = zip(*(values[:limit] for values in answers.values()), strict=True)
    table(("row", *answers), ((row, *line) for row, line in enumerate(lines)), title=name, right=("row",))
    if given.num_rows > limit:
        say(f"... and {given.num_rows - limit:,} more; all of them with --out or --json")


def _plain(values: Any) -> list[Any]:
    """An answer's rows as builtins."""
    if hasattr(values, "tolist"):
        return list(values.tolist())
    return [row.tolist() if hasattr(row, "tolist") else row for row in values]


def _score(
    keep: Keep,
    version: Version,
    trusted: tuple[str, ...],
    *,
    source: str,
    out: str | None,
    suffix: str,
    on_error: Literal["fail", "skip"],
    engine: Engine,
    as_json: bool,
) -> None:
    """Score many files; what was finished before is kept."""
    import msgspec

    from modelkeep.cli.progress import watching
    from modelkeep.core.digests import of_value
    from modelkeep.engines.local import LocalEngine
    from modelkeep.lifecycle import locks
    from modelkeep.lifecycle.scoring import Scoring
    from modelkeep.store.blobs import read_files

    if out is None:
        raise Invalid("is missing: with --in, say where the answers go", path="--out")
    scoring = Scoring(
        source,
        out,
        Path.cwd(),
        version=version.name,
        package=version.package,
        trusted=trusted,
        suffix=suffix,
        on_error=on_error,
    )
    # elsewhere a part has the cores that the engine gives it
    cores, here = LocalEngine().workers, isinstance(engine, LocalEngine)
    processes = min(engine.slots(), scoring.parts) if here else cores
    where = str(scoring.job.out)
    lock = f"score-{of_value(where)[:16]}"
    with (
        locks.held(keep.home, lock, doing=f"scoring into {where}"),
        watching(quiet=as_json) as progress,
    ):
        files = read_files(keep.blobs, version.package)
        done = scoring.run(files, engine, progress, threads=max(1, cores // processes))
    if as_json:
        print_json({**msgspec.to_builtins(done), "out": where})
        return
    before = f", {done.reused:,} of them before" if done.reused else ""
    say(f"scored {done.rows:,} rows of {done.parts:,} parts with {text(done.version)}{before}; see {text(where)}")
    if done.skipped:
        say(f"{done.skipped:,} rows put aside, each with the reason, in {text(where)}/_quarantine")


def _one_row(values: tuple[str, ...], signature: Signature) -> pa.Table:
    import msgspec
    import pyarrow as pa

    fields = {field.name: field for field in signature.inputs}
    row: dict[str, list[Any]] = {}
    for pair in values:
        name, sign, value = pair.partition("=")
        if not sign:
            raise Invalid(f"{pair!r} is not NAME=VALUE")
        row[name] = [value]
        field = fields.get(name)
        if field is not None and (field.shape or field.type in ("int64", "float64", "bool")):
            try:
                row[name] = [msgspec.json.decode(value)]
            except msgspec.DecodeError:
                shape = f" of shape {list(field.shape)}, as JSON" if field.shape else ""
                raise Invalid(f"{value[:200]!r} is not a {field.type}{shape}", path=name) from None
    try:
        return pa.table(row)
    except pa.ArrowException as error:  # lists in which not all is of one kind
        raise Invalid(str(error).splitlines()[0]) from None


def _rows(path: Path, signature: Signature) -> pa.Table:
    """The model's inputs among a file's columns; others, such as the target, are left out."""
    from modelkeep.cli.tables import read_table

    found = read_table(path)
    names = [field.name for field in signature.inputs if field.name in found.column_names]
    return found.select(names)
