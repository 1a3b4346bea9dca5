"""What one writes by hand with DuckDB, on a database in a file.

python plain_duckdb.py SOURCE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.preparing.flights import NUMBERS, ONE_HOT, ORDINAL, TEST


def main(source: Path, out: Path) -> None:
    db = duckdb.connect(str(out / "work.duckdb"))
    db.execute("SET preserve_insertion_order = false")
    names = ", ".join((*NUMBERS, *ONE_HOT, ORDINAL))
    db.execute(
        f"CREATE TABLE clean AS SELECT DISTINCT ON (flight_id) {names}, late, "
        f"hash(flight_id) < {int(TEST * 2**64)}::UBIGINT AS test "
        f"FROM read_parquet('{source}/*.parquet') WHERE late IS NOT NULL"
    )

    def asked(what: str) -> Any:
        return db.execute(f"SELECT {what} FROM clean WHERE NOT test").fetchall()[0]

    medians = asked(", ".join(f"median({name}::DOUBLE)" for name in NUMBERS))
    filled = [f"coalesce({name}::DOUBLE, {value})" for name, value in zip(NUMBERS, medians, strict=True)]
    moments = asked(", ".join(f"avg({one}), stddev_pop({one})" for one in filled))
    encoded = [
        f"({one} - {mean!r}) / {spread!r} AS {name}"
        for name, one, mean, spread in zip(NUMBERS, filled, moments[::2], moments[1::2], strict=True)
    ]
    found = {
        name: [
            row[0] for row in db.execute(f"SELECT DISTINCT {name} FROM clean WHERE NOT test ORDER BY 1").fetchall()
        ]
        for name in (*ONE_HOT, ORDINAL)
    }
    encoded += [f"({name} = '{value}')::DOUBLE AS \"{name}_{value}\"" for name in ONE_HOT for value in found[name]]
    encoded.append(f"coalesce(list_position({found[ORDINAL]}, {ORDINAL}) - 1, -1)::DOUBLE AS {ORDINAL}")
    for side, where in (("train", "NOT test"), ("test", "test")):
        db.execute(
            f"COPY (SELECT {', '.join(encoded)}, late FROM clean WHERE {where}) TO '{out}/{side}.parquet' "
            "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
