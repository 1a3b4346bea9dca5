"""The prepare stage of `modelkeep apply`, out of core on the local engine, and then its features as Parquet.

python ours.py SOURCE OUT
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.preparing.flights import NUMBERS, ONE_HOT, ORDINAL, TEST
from modelkeep.core.ports import BlobStore
from modelkeep.data.prepare import prepare_parts
from modelkeep.data.streams import Lazy
from modelkeep.engines.opening import open_engine
from modelkeep.lifecycle.tables import BlobParts, TablePart
from modelkeep.spec import steps
from modelkeep.spec.declaration import Data, Declaration, Split
from modelkeep.store.blobs import open_blobs
from modelkeep.train.encoding import encoded

DECLARED = Declaration(
    model="flights",
    data=Data(
        source="flights-*.parquet",
        target="late",
        key=("flight_id",),
        time="scheduled_at",
        clean=(steps.DropDuplicates(columns=("flight_id",)), steps.DropMissing(columns=("late",))),
        split=Split(test=TEST, by="key"),
    ),
    features=(
        steps.Impute(columns=NUMBERS, strategy="median"),
        steps.Scale(columns=NUMBERS, method="standard"),
        steps.Encode(columns=ONE_HOT, method="onehot"),
        steps.Encode(columns=(ORDINAL,), method="ordinal"),
    ),
)


@dataclass(frozen=True)
class File:
    """A file, or some of its columns: rows where they lie, as those of a pinned Delta or Iceberg table are."""

    path: Path

    def __call__(self, columns: Sequence[str] | None = None) -> pa.Table:
        return pq.ParquetFile(self.path).read(columns and list(columns))


def encode(
    blobs: BlobStore, transformer: Callable[[], Any], inputs: list[str], out: Path, part: TablePart
) -> None:
    """The features of a part, and the target, as Parquet."""
    table = BlobParts(blobs).read(part, [*inputs, "late"])
    fitted = transformer()
    matrix = encoded(fitted, table, inputs, order="F")
    columns = {name: matrix[:, at] for at, name in enumerate(fitted.get_feature_names_out())}
    made = pa.table({**columns, "late": table.column("late")})
    pq.write_table(made, out / f"{part.digest}.parquet", compression="zstd", compression_level=1)


def main(source: Path, out: Path) -> None:
    files = sorted(source.glob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    blobs = open_blobs(str(out / "blobs"))
    engine = open_engine("local")
    begin = time.perf_counter()
    made = prepare_parts(DECLARED, Lazy.of([File(path) for path in files], engine), rows, BlobParts(blobs))
    prepared = time.perf_counter()
    transformer = engine.put(made.features.to_sklearn(dense=True))
    for side, parts in (("train", made.train), ("test", made.test)):
        (out / side).mkdir()
        for _ in engine.map(partial(encode, blobs, transformer, made.inputs, out / side), parts):
            pass
    engine.close()
    spent = {"prepare": prepared - begin, "encode": time.perf_counter() - prepared}
    (out / "spent.json").write_text(json.dumps(spent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
