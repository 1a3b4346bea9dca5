"""Tables as blobs: what a stage hands to the next."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from modelkeep.core.ports import BlobStore


def keep_table(blobs: BlobStore, table: pa.Table) -> str:
    """Keep a table as one Parquet blob and return its digest. Equal tables have equal digests."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1, write_statistics=False)
    return blobs.put(sink.getvalue().to_pybytes())


def open_table(blobs: BlobStore, digest: str) -> pa.Table:
    """Read back what ``keep_table`` kept."""
    with blobs.open(digest) as stream:
        return pq.read_table(pa.BufferReader(stream.read()))
