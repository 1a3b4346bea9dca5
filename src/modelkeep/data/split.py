"""What is kept for evaluation: by hash of the key, at random, or the latest in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.data.columns import unknown_column
from modelkeep.data.hashing import row_hashes
from modelkeep.spec.declaration import Split

SALT = "modelkeep:split:1:"
"""Part of every key's hash. Changing it would move rows between training and evaluation: never do."""


def test_rows(
    table: pa.Table, split: Split, keys: Sequence[str], time: str, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Which rows are kept for evaluation, shape (rows,).

    By key a row's side depends on its own key alone, so it never changes when the table grows; the share is met on
    average. Without a key the whole row is hashed. By time the latest share of rows is kept, and rows of the same
    moment are never divided.

    Raises:
        Invalid: No such column, the time is missing somewhere, or one side would be empty.
    """
    if not 0 < split.test < 1:
        raise Invalid(
            f"{split.test:g} is no share of rows; expected more than 0 and less than 1", path="data.split.test"
        )
    if split.by == "key":
        made = _by_key(table, split.test, keys)
    elif split.by == "random":
        made = np.zeros(table.num_rows, dtype=bool)
        chosen = round(table.num_rows * split.test)
        made[np.random.default_rng(seed).permutation(table.num_rows)[:chosen]] = True
    else:
        made = _by_time(table, split.test, time)
    if table.num_rows and (made.all() or not made.any()):
        side = "evaluation" if made.all() else "training"
        raise Invalid(
            f"all {table.num_rows} rows fall on the side of {side}",
            path="data.split",
            hint="give more rows, another share, or split by: random",
        )
    return made


def _by_key(table: pa.Table, share: float, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
    for name in keys:
        if name not in table.column_names:
            raise unknown_column(name, table.column_names, "data.key")
    made: npt.NDArray[np.bool_] = row_hashes(table, keys or table.column_names, SALT) < np.uint64(share * 2.0**64)
    return made


def _by_time(table: pa.Table, share: float, time: str) -> npt.NDArray[np.bool_]:
    if not time:
        raise Invalid("a split by time needs the time column", path="data.time")
    if time not in table.column_names:
        raise unknown_column(time, table.column_names, "data.time")
    column = table.column(time)
    if column.null_count:
        raise Invalid(
            f"{column.null_count} rows have no {time!r}; they have no place in a split by time",
            path="data.time",
            hint=f"add '- drop_missing: {{columns: [{time}]}}' under data.clean",
        )
    order = pc.sort_indices(column).to_numpy()
    first = column[int(order[int(len(order) * (1 - share))])] if len(order) else None
    if first is None:
        return np.zeros(0, dtype=bool)
    after: npt.NDArray[np.bool_] = pc.greater_equal(column, first).to_numpy()
    return after
