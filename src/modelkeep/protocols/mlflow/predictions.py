"""``{"predictions": ...}`` as MLflow's scoring server writes it for what the same model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from modelkeep.formats.outputs import Form, form_of
from modelkeep.serve.columns import Array

Writer = Callable[[int, int], bytes]
"""Writes the body for the rows of a batch from the first number to before the second."""

_encode = msgspec.json.Encoder().encode


def answer(outputs: Mapping[str, Array]) -> Writer:
    """What ``predict`` gives. Of outputs without a form that is the label or the value, else records of all."""
    form = form_of(outputs)
    if form is None:
        name = next((name for name in ("label", "prediction") if name in outputs), "")
        if name or len(outputs) == 1:
            return _values(outputs[name or next(iter(outputs))])
        form = Form("records", tuple(outputs))
    if form.kind == "records":
        return _rows([_encode(record) for record in _records(list(outputs.values()), form)])
    columns = [column.tolist() for column in outputs.values()]
    if form.kind == "lists":
        return lambda start, stop: _encode({"predictions": [column[start:stop] for column in columns]})
    named = list(zip(form.keys, columns, strict=True))
    return lambda start, stop: _encode({"predictions": {key: column[start:stop] for key, column in named}})


def probabilities(outputs: Mapping[str, Array]) -> Writer:
    """What ``predict_proba`` gives: as ``answer`` where params had the model give none."""
    return _values(outputs["probability"]) if "probability" in outputs else answer(outputs)


def _values(column: Array) -> Writer:
    return _rows([_encode(value) for value in column.tolist()])


def _rows(texts: Sequence[bytes]) -> Writer:
    return lambda start, stop: b'{"predictions":[%b]}' % b",".join(texts[start:stop])


def _records(columns: Sequence[Array], form: Form) -> list[dict[str, Any]]:
    if len(columns) == 1 and len(form.keys) > 1:
        return [dict(zip(form.keys, row, strict=True)) for row in columns[0].tolist()]
    if form.flat:
        columns = [column.reshape(-1) if column.shape[1:] == (1,) else column for column in columns]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(form.keys, row, strict=True)) for row in rows]
