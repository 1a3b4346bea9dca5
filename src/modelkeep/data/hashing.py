"""A hash of rows that is the same on every machine, in every release, and whatever the table's other rows are."""

from __future__ import annotations

import binascii
import os
import threading
from collections.abc import Sequence

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.compiled import Pays
from modelkeep.spec.filters import quote_identifier as quote

UInts = npt.NDArray[np.uint64]

_pays = Pays(2_000_000)


def ask(query: str, **tables: pa.Table) -> pa.Table:
    """Run SQL over these tables, in a DuckDB that sees nothing else and downloads nothing.

    Times with a zone are given in UTC without one: the zone's arithmetic is an extension of DuckDB.

    Raises:
        duckdb.Error: The query does not fit the tables.
    """
    db = _database()
    try:
        for name, table in tables.items():
            db.register(name, without_zones(table))
        return db.sql(query).to_arrow_table()
    finally:
        for name in tables:
            db.unregister(name)


def _database() -> duckdb.DuckDBPyConnection:
    """This thread's own, opened once: it keeps nothing. After a fork a new one, as its threads are gone."""
    if getattr(_mine, "process", None) != os.getpid():
        config: dict[str, str | bool | int | float | list[str]] = {
            "python_enable_replacements": "false",
            "autoload_known_extensions": "false",
        }
        if "OMP_NUM_THREADS" in os.environ:  # an engine's worker has its share of the cores
            config["threads"] = max(1, int(os.environ["OMP_NUM_THREADS"]))
        _mine.process, _mine.db = os.getpid(), duckdb.connect(config=config)
    db: duckdb.DuckDBPyConnection = _mine.db
    return db


_mine = threading.local()


def row_hashes(table: pa.Table, columns: Sequence[str], salt: str) -> UInts:
    """MD5 (RFC 1321) of the salt and the canonical text of the columns; the last 8 bytes as a big-endian number.

    The text of a whole number is the same whether its column holds integers or floats, so a row keeps its hash
    when a missing value elsewhere turns the column to floats. Shape (rows,).
    """
    chosen = table.select(list(dict.fromkeys(columns)))
    quick = _compiled(chosen, salt) if _pays.with_more(chosen.num_rows) else None
    if quick is not None:
        return quick
    names = [f"c{index}" for index in range(chosen.num_columns)]
    texts = [_text(name, field.type) for name, field in zip(names, chosen.schema, strict=True)]
    # Unit separators keep ('a', 'bc') and ('ab', 'c') apart; a missing value is not the empty string.
    joined = " || chr(31) || ".join(f"coalesce({text}, chr(0))" for text in texts)
    # Not md5_number_lower, for which DuckDB takes twice as long.
    made = ask(f"SELECT md5('{salt}' || {joined}) AS h FROM rows", rows=chosen.rename_columns(names))
    digests = made.column("h").cast(pa.string()).combine_chunks()
    chunks = digests.chunks if isinstance(digests, pa.ChunkedArray) else [digests]
    return np.concatenate([np.empty(0, np.uint64), *(_last_eight(chunk) for chunk in chunks if len(chunk))])


def _compiled(chosen: pa.Table, salt: str) -> UInts | None:
    """The same of strings and whole numbers in compiled code; None where there is anything else."""
    if not all(pa.types.is_string(field.type) or pa.types.is_integer(field.type) for field in chosen.schema):
        return None
    from modelkeep.data import md5  # Numba takes a while to import

    texts = [pc.fill_null(pc.cast(column, pa.string()), "\0") for column in chosen.columns]
    return md5.last_eight(texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f"), salt)


def _last_eight(digests: pa.StringArray) -> UInts:
    """The last 8 bytes of each digest of 32 hexadecimal characters."""
    _, offsets, text = digests.buffers()
    start = int(np.frombuffer(offsets, np.int32)[digests.offset])
    raw = binascii.unhexlify(memoryview(text)[start : start + 32 * len(digests)])
    return np.frombuffer(raw, ">u8")[1::2].astype(np.uint64)


def _text(name: str, kind: pa.DataType) -> str:
    column = quote(name)
    if pa.types.is_floating(kind):
        whole = f"{column} = floor({column}) AND abs({column}) < 9007199254740992"
        return f"CASE WHEN {whole} THEN {column}::BIGINT::VARCHAR ELSE printf('%.17g', {column}) END"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return f"epoch_us({column}::TIMESTAMP)::VARCHAR"
    return f"{column}::VARCHAR"


def without_zones(table: pa.Table) -> pa.Table:
    """Times with a zone as the same times in UTC, without one."""
    fields = [
        pa.field(f.name, pa.timestamp(f.type.unit)) if pa.types.is_timestamp(f.type) and f.type.tz else f
        for f in table.schema
    ]
    wanted = pa.schema(fields)
    return table if wanted.equals(table.schema) else table.cast(wanted)
