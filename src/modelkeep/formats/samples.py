"""Rows to try a model with: those recorded in its package, else made up within its signature."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from modelkeep.core.errors import Damaged, Invalid
from modelkeep.formats import manifest as manifests
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.signature import Signature
from modelkeep.formats.validate import Checker

ROWS = 16
"""Most rows that are recorded."""

LONGEST = 1 << 16
"""Characters of text from which on a row is too long to be recorded."""


def of(columns: Mapping[str, Any], signature: Signature, mask: Collection[str] = ()) -> dict[str, list[Any]]:
    """Rows to record: those given, save very long ones and those that the signature refuses.

    Args:
        columns: Up to 16 rows, arrays by input as ``formats.batch`` describes them.
        mask: Inputs of which nothing may be kept: their values are made up.

    Returns:
        Lists of JSON types by input, equally long; empty when there are no rows to record.
    """
    batch, checker, invented = Layout(signature).pack(columns), Checker(signature), example(signature)
    cells = {name: [invented[name]] * batch.rows if name in mask else _plain(batch, name) for name in batch}
    kept = []
    for row in range(batch.rows):
        one = {name: [values[row]] for name, values in cells.items()}
        if sum(len(value) for (value,) in one.values() if isinstance(value, str)) > LONGEST:
            continue
        try:
            checker.check(one, 1)
        except Invalid:  # such as infinity, with which one may train
            continue
        kept.append(row)
    return {name: [values[row] for row in kept] for name, values in cells.items()} if kept else {}


def _plain(batch: Batch, name: str) -> list[Any]:
    """One column as JSON types, None for missing."""
    if batch.layout.fields[name].type == "timestamp":
        return [
            None if math.isnan(micros) else int(micros) for micros in batch.numbers[batch.layout.number_at[name]]
        ]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in batch[name].tolist()]


def recorded(files: Mapping[str, bytes]) -> dict[str, list[Any]]:
    """The rows kept in a package, lists by input; empty when there are none. Raises ``Damaged``."""
    manifest = manifests.read(files)
    if manifests.SAMPLE not in manifest.files:
        return {}
    try:
        return msgspec.json.decode(manifests.take(files, manifest, manifests.SAMPLE), type=dict[str, list[Any]])
    except msgspec.MsgspecError as error:
        raise Damaged(f"{manifests.SAMPLE} cannot be read: {error}") from error


def batch(signature: Signature, rows: Mapping[str, list[Any]], count: int = 0) -> Batch:
    """Rows as a batch.

    Args:
        rows: Recorded ones, lists by input; empty for made-up ones.
        count: How many, repeating them as needed; 0 means as many as there are, or one.

    Raises:
        Invalid: They do not fit the signature.
    """
    if not rows:
        rows = {name: [value] for name, value in example(signature).items()}
    there = len(next(iter(rows.values())))
    count = count or there
    repeated = {name: (values * math.ceil(count / there))[:count] for name, values in rows.items()}
    return Checker(signature).check(repeated, count)


def example(signature: Signature) -> dict[str, Any]:
    """One row within the ranges and categories of training."""
    row: dict[str, Any] = {}
    for field in signature.inputs:
        if field.shape:
            row[field.name] = [{"string": "a", "bool": False}.get(field.type, 0)] * field.size
        elif field.type == "string":
            row[field.name] = field.categories[0] if field.categories else "a"
        elif field.type == "bool":
            row[field.name] = False
        else:
            low, high = field.min or 0.0, field.max or 0.0
            middle = low + (high - low) / 2
            row[field.name] = float(middle) if field.type == "float64" else math.floor(middle)
    return row
