"""Flights times a hundred: as many Parquet files as copies, each the flights of 2013 with keys of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = (
    *("distance", "minute_of_day", "weekday"),
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"),
)
ONE_HOT, ORDINAL = ("carrier", "origin"), "dest"
TEST = 0.2
TWICE, UNKNOWN = 0.01, 0.02
"""The share of rows that are there twice, and of those whose target is missing: what cleaning finds."""


def write(folder: Path, copies: int) -> int:
    """Write the files and return how many rows they hold; one copy is in memory at once."""
    spec = importlib.util.spec_from_file_location("flights", ROOT / "examples" / "flights" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    year = pa.Table.from_pandas(module.load(), preserve_index=False).replace_schema_metadata()
    texts = {field.name: pa.string() for field in year.schema if pa.types.is_large_string(field.type)}
    year = year.cast(pa.schema([pa.field(field.name, texts.get(field.name, field.type)) for field in year.schema]))
    for copy in range(copies):
        random = np.random.default_rng([5, copy])
        gone = pa.array(random.random(year.num_rows) < UNKNOWN)
        keys = pc.binary_join_element_wise(year.column("flight_id"), pa.scalar(f"{copy:03}"), "-")
        made = year.set_column(0, "flight_id", keys)
        late = pc.if_else(gone, pa.scalar(None, pa.int64()), made.column("late"))
        made = made.set_column(made.schema.get_field_index("late"), "late", late)
        again = np.flatnonzero(random.random(year.num_rows) < TWICE)
        both = pa.concat_tables([made, made.take(pa.array(again))]).combine_chunks()
        pq.write_table(both, folder / f"flights-{copy:03}.parquet", compression="zstd", row_group_size=131_072)
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
