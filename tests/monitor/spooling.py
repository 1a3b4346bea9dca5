"""Writes spool files as serving does."""

import json

import numpy as np
import pyarrow as pa


def spool(
    folder,
    name,
    *,
    times,
    inputs,
    score=None,
    label=None,
    value=None,
    version=1,
    mode="stable",
    errors=0,
    dropped=0,
):
    """One file of predictions at ``times`` (seconds); returns their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    times = np.asarray(times, dtype=float)
    ids = [f"{name}-{i}" for i in range(len(times))]
    columns = {
        "prediction_id": pa.array(ids, pa.string()),
        "time": pa.array(np.round(times * 1e6).astype("int64"), pa.timestamp("us", tz="UTC")),
        "key": pa.nulls(len(times), pa.string()),
        "latency_ms": pa.array(np.linspace(1, 5, len(times)), pa.float32()),
        **{f"in.{column}": values for column, values in inputs.items()},
    }
    if score is not None:
        score = np.asarray(score, dtype=np.float32)
        columns["out.probability"] = pa.array([[1 - s, s] for s in score], pa.list_(pa.float32()))
        columns["out.label"] = pa.array(score > 0.5 if label is None else label)
    if value is not None:
        columns["out.prediction"] = pa.array(value)
    span = {"start": float(times.min()), "end": float(times.max())} if len(times) else {"start": 0.0, "end": 0.0}
    about = {"endpoint": "flights", "model": "flights", "version": version, "mode": mode, "sample": 1.0}
    about |= {"errors": errors, "dropped": dropped, **span}
    table = pa.table(columns).replace_schema_metadata({"modelkeep": json.dumps(about)})
    with pa.ipc.new_file(str(folder / f"{name}.arrow"), table.schema) as writer:
        writer.write_table(table)
    return ids
