"""Objects of a real S3 server as sources: read in bounded memory, here and on an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pytest
from obstore.store import from_url
from pyarrow import csv, parquet

TAKE = """
import sys, threading
from pathlib import Path
from modelkeep.data import readers
from modelkeep.data.snapshots import Snapshots
from modelkeep.spec.declaration import Data
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database

readers.PIECE_BYTES, readers.PIECE_ROWS = 8 << 20, 50_000
most, done = 0, threading.Event()

def held():  # what is mapped of files is not counted: the kernel takes it back
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) // 1024

def watch():
    global most
    while not done.wait(0.005):
        most = max(most, held())

home = Path(sys.argv[2])
snapshots = Snapshots(Database.open(f"sqlite:///{home}/m.db"), open_blobs(str(home / "blobs")))
snapshots.take(Data(source=sys.argv[3]), "small", home, 1.0)
before = held()
watcher = threading.Thread(target=watch)
watcher.start()
taken = snapshots.take(Data(source=sys.argv[1]), "large", home, 1.0)
done.set()
watcher.join()
print(taken.rows, most - before)
"""


def put(url: str, table: pa.Table, folder: Path, suffix: str) -> int:
    """Write a table as one object; its bytes."""
    path = folder / f"t{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=20_000, compression="none", use_dictionary=False)
    else:
        csv.write_csv(table, path)
    root, name = "/".join(url.split("/")[:3]), url.split("/", 3)[3]
    obstore.put(from_url(root, client_options={"allow_http": True}), name, path)
    size = path.stat().st_size
    path.unlink()
    return size


def noise(rows: int, columns: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({f"c{column}": random.normal(size=rows) for column in range(columns)})


@pytest.mark.parametrize(("suffix", "rows"), [(".parquet", 4_000_000), (".csv", 1_700_000)])
def test_a_large_object_is_never_held_whole(tmp_path: Path, s3: str, suffix: str, rows: int) -> None:
    size = put(f"{s3}/large{suffix}", noise(rows, 5), tmp_path, suffix)
    assert size > 150 << 20
    put(f"{s3}/small{suffix}", noise(100_000, 5), tmp_path, suffix)
    told = subprocess.check_output(
        [sys.executable, "-c", TAKE, f"{s3}/large{suffix}", str(tmp_path), f"{s3}/small{suffix}"], text=True
    )
    found, grown = map(int, told.split())
    assert found == rows
    assert grown < 100


ON_ENGINE = """
import sys
from pathlib import Path
from modelkeep.data import taking
from modelkeep.data.snapshots import Snapshots
from modelkeep.engines.local import LocalEngine
from modelkeep.spec.declaration import Data
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database

taking.MUCH = 0
home = Path(sys.argv[2])
snapshots = Snapshots(Database.open(f"sqlite:///{home}/m.db"), open_blobs(f"{sys.argv[1]}/blobs"))
data = Data(source=f"{sys.argv[1]}/in")
here = snapshots.take(data, "here", home, 1.0)
with LocalEngine(2) as engine:
    there = snapshots.take(data, "there", home, 1.0, engine=lambda: engine)
assert there.digest == here.digest
print(there.rows)
"""


def test_an_engine_reads_objects_and_leaves_no_copies(tmp_path: Path, s3: str) -> None:
    """In a process of its own, whose workers begin with its environment."""
    for part, suffix in enumerate((".parquet", ".csv", ".parquet")):
        put(f"{s3}/in/{part}{suffix}", noise(1000, 3, seed=part), tmp_path, suffix)
    with tempfile.TemporaryDirectory(prefix="s3-", dir="/tmp") as scratch:  # sockets in there have short names
        command = [sys.executable, "-c", ON_ENGINE, s3, str(tmp_path)]
        told = subprocess.check_output(command, text=True, env={**os.environ, "TMPDIR": scratch})
        left = [path for path in Path(scratch).rglob("*") if path.suffix in (".parquet", ".csv")]
    assert int(told) == 3000
    assert left == []
