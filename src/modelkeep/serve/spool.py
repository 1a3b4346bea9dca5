"""The thread that writes captured predictions to Arrow IPC files, whole or not at all.

One file holds one endpoint, version and mode. Columns: ``prediction_id``, ``time`` (timestamp[us, UTC]), ``key``,
``latency_ms`` (float32), ``in.<input>``, ``out.label``, ``out.probability`` (list<float32>), ``out.prediction``.
The schema's metadata holds under ``modelkeep`` a JSON object: endpoint, model, version, mode, sample, errors,
dropped (both since the file before), start, end (seconds since 1970 UTC).
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa

from modelkeep.core.clock import Clock
from modelkeep.serve.capture import BATCH_ROWS, Channel, Record
from modelkeep.serve.columns import Array

log = logging.getLogger(__name__)

EVERY = 1.0
PIECE_REQUESTS, PIECE_ROWS = 1_000, 10_000
BREATH = 0.002
_ARROW = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}


class Spool:
    """Collects channels and writes what they hold about every second, or as soon as there are 5,000 rows.

    Args:
        folder: Where files go; made when missing.
        clock: For the times in the metadata.
        every: Seconds between files.
    """

    def __init__(self, folder: Path, clock: Clock, *, every: float = EVERY) -> None:
        self.folder = folder
        self.full = threading.Event()
        self._clock = clock
        self._every = every
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._channels: list[Channel] = []
        self._retired: list[Channel] = []
        self._name = f"{os.getpid()}-{time.time_ns() // 1000:x}"
        self._sequence = 0
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="capture-spool", daemon=True)

    def start(self) -> None:
        """Begin writing."""
        self._thread.start()

    def close(self) -> None:
        """Write what is held and stop."""
        self._stop.set()
        self.full.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=30)
        self.flush()

    def add(self, channel: Channel) -> None:
        """Write this channel from now on."""
        with self._guard:
            self._channels.append(channel)

    def retire(self, channel: Channel) -> None:
        """Write what the channel still gets from batches under way, then forget it."""
        with self._guard:
            if channel in self._channels:
                self._channels.remove(channel)
                self._retired.append(channel)

    def flush(self) -> None:
        """Write everything held now."""
        with self._writing:
            with self._guard:
                channels = [*self._channels, *self._retired]
                # asked before writing: what had ended by then is written now
                ended = [channel for channel in self._retired if channel.idle]
            for channel in channels:
                self._write(channel)
            with self._guard:
                self._retired = [channel for channel in self._retired if channel not in ended]

    def _run(self) -> None:
        spent = 0.0
        while not self._stop.is_set():
            self.full.wait(self._every)
            # a pause gathers bigger files under load and leaves processor and interpreter to the requests: what
            # comes faster than a quarter of the time suffices to write is dropped, and counted
            self._stop.wait(max(min(0.05, self._every), 3 * spent))
            self.full.clear()
            began = perf_counter()
            try:
                self.flush()
            except Exception:
                log.exception("the capture spool failed; serving goes on")
            spent = perf_counter() - began

    def _write(self, channel: Channel) -> None:
        records = channel.take()
        errors, dropped = channel.errors, channel.dropped + channel.lost
        before = channel.reported
        if not records and (errors, dropped) == before:
            return
        rows = sum(record.rows for record in records)
        now = self._clock.now()
        about = {
            "endpoint": channel.endpoint,
            "model": channel.model,
            "version": channel.version,
            "mode": channel.mode,
            "sample": channel.sample,
            "errors": errors - before[0],
            "dropped": dropped - before[1],
            "start": records[0].time if records else now,
            "end": records[-1].time if records else now,
        }
        try:
            tables: list[pa.Table] = []
            kinds: dict[str, pa.DataType] = {}
            for piece in _pieces(records):
                tables.append(table(channel, piece, kinds))
                self._stop.wait(BREATH)  # the requests' turn at the interpreter
            # params may change which outputs there are: a piece without one has nulls there
            whole = pa.concat_tables(tables, promote_options="default") if tables else table(channel, [], kinds)
            self._save(whole.replace_schema_metadata({"modelkeep": json.dumps(about)}))
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            channel.lost += rows
            log.warning("%d captured rows of %s were dropped: %s", rows, channel.endpoint, error)
        else:
            channel.reported = (errors, dropped)

    def _save(self, content: pa.Table) -> None:
        self._sequence += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{self._name}-{self._sequence:06d}.arrow"
        fresh = final.with_suffix(".tmp")
        # made in memory first: a write of each column's buffer costs a system call and a turn at the interpreter
        made = pa.BufferOutputStream()
        with pa.ipc.new_file(made, content.schema) as writer:
            writer.write_table(content.combine_chunks(), max_chunksize=BATCH_ROWS * 20)
        try:
            fresh.write_bytes(made.getvalue())
            fresh.replace(final)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def _pieces(records: list[Record]) -> Iterator[list[Record]]:
    """Runs of records that take well under a millisecond to convert."""
    start = requests = rows = 0
    for place, record in enumerate(records):
        requests, rows = requests + len(record.ids), rows + record.rows
        if requests >= PIECE_REQUESTS or rows >= PIECE_ROWS:
            yield records[start : place + 1]
            start, requests, rows = place + 1, 0, 0
    if start < len(records):
        yield records[start:]


def table(channel: Channel, records: list[Record], kinds: dict[str, pa.DataType]) -> pa.Table:
    """The captured rows of one channel, in order; ``kinds`` are the types of its outputs, as far as known."""
    counts = np.concatenate(
        [np.asarray(record.counts, dtype=np.int64) for record in records] or [_empty(np.int64)]
    )
    latency = np.concatenate([record.latency for record in records] or [_empty(np.float32)])
    micros = np.repeat(
        np.array([round(record.time * 1e6) for record in records], dtype=np.int64),
        np.array([record.rows for record in records], dtype=np.int64),
    )
    columns: dict[str, pa.Array] = {
        "prediction_id": _prediction_ids([name for record in records for name in record.ids], counts),
        "time": pa.array(micros, type=pa.timestamp("us", tz="UTC")),
        "key": _keys(records, counts),
        "latency_ms": pa.array(np.repeat(latency, counts).astype(np.float32, copy=False)),
    }
    inputs: dict[str, pa.Array] = {}
    if channel.numbers:
        block = _block([record.numbers for record in records], len(channel.numbers))
        # a sum is NaN where a value is, and also for infinities of both signs: those columns are looked at closer
        with np.errstate(invalid="ignore", over="ignore"):
            doubtful = np.isnan(block.sum(axis=1)).tolist()
        inputs |= {
            field.name: _numbers(block[place], field.type, doubtful[place])
            for place, field in enumerate(channel.numbers)
        }
    for place, field in enumerate(channel.strings):
        texts = np.concatenate([record.strings[place] for record in records] or [_empty(object)])
        inputs[field.name] = pa.array(texts, type=pa.string())
    columns |= {f"in.{name}": inputs[name] for name in channel.order}
    for name in dict.fromkeys(name for record in records for name in record.outputs):
        columns[f"out.{name}"] = _outputs(records, name, kinds)
    return pa.table(columns)


def _block(blocks: list[Array], width: int) -> Array:
    """Blocks of (width, rows) one after the other, C-contiguous; joined as rows, which is how most of them lie."""
    if not blocks:
        return np.empty((width, 0))
    return np.ascontiguousarray(np.concatenate([block.T for block in blocks]).T)


def _empty(dtype: type) -> Array:
    return np.empty(0, dtype=dtype)


def _keys(records: list[Record], counts: Array) -> pa.Array:
    if all(record.keys is None for record in records):
        return pa.nulls(int(counts.sum()), type=pa.string())
    keys = [key for record in records for key in (record.keys or [None] * len(record.ids))]
    return pa.array(np.repeat(np.array(keys, dtype=object), counts), type=pa.string())


def _prediction_ids(names: list[str], counts: Array) -> pa.Array:
    """The request's id for one row, ``<id>/<row>`` for several; see ``serve.ids``."""
    requests = pa.array(names, type=pa.string())
    if (counts == 1).all():
        return requests
    import pyarrow.compute as pc  # ten megabytes that a process asked for single rows does without

    whole = requests.take(pa.array(np.repeat(np.arange(len(counts)), counts)))
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rows = pa.array(np.arange(len(starts)) - starts).cast(pa.string())
    numbered = pc.binary_join_element_wise(whole, rows, "/")
    return pc.if_else(pa.array(np.repeat(counts == 1, counts)), whole, numbered)


def _numbers(row: Array, kind: str, missing: bool) -> pa.Array:
    """One input from its row of a block; NaN is missing, if there may be any."""
    found = pa.array(row, from_pandas=missing)
    if kind == "float64":
        return found
    if kind == "timestamp":
        return found.cast(pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return found.cast(_ARROW[kind])


def _outputs(records: list[Record], name: str, kinds: dict[str, pa.DataType]) -> pa.Array:
    """One output of all rows. Params may change what a model gives: what is not of the first type seen is null."""
    parts = [record.outputs.get(name) for record in records]
    there = [part for part in parts if part is not None]
    if len(there) == len(parts) and len({(part.dtype.kind, part.shape[1:]) for part in there}) == 1:
        made = [_output(np.concatenate(there))]
    else:
        made = [
            pa.nulls(record.rows) if part is None else _output(part)
            for part, record in zip(parts, records, strict=True)
        ]
    kind = kinds.get(name) or next((one.type for one in made if not pa.types.is_null(one.type)), pa.null())
    if not pa.types.is_null(kind):
        kinds[name] = kind
    return pa.concat_arrays([one if one.type == kind else pa.nulls(len(one), kind) for one in made])


def _output(column: Array) -> pa.Array:
    if column.ndim > 1:
        rows, width = len(column), math.prod(column.shape[1:])
        if column.dtype.kind == "O":
            flat = pa.array(column.reshape(-1), pa.string())
        else:
            flat = pa.array(np.ascontiguousarray(column, dtype=np.float32).reshape(-1))
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), flat)
    return pa.array(column, from_pandas=column.dtype.kind == "O")
