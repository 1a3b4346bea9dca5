"""Whether a graph says what the original says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Damaged, Invalid, UserCodeFailed
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.onnx.graph import Exported
from modelkeep.formats.onnx_runtime import OnnxModel
from modelkeep.formats.signature import Signature
from modelkeep.formats.sklearn_runtime import SklearnModel

TOLERANCE = 1e-5
"""Largest difference of a probability, and of a value relative to its size or the values' spread."""
MOST_ROWS = 2000
_PROBES = 50
_UNSEEN = "\u2047 never seen in training"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What comparing found.

    Attributes:
        rows: Rows compared.
        disagree: Rows on which the two differ beyond the tolerance.
        largest: Largest difference of a probability or value.
        failed: Why the graph could not run, when it could not.
    """

    rows: int
    disagree: int
    largest: float
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"the ONNX graph does not run: {self.failed}"
        return (
            f"ONNX and the original disagree on {self.disagree} of {self.rows} rows, "
            f"by up to {self.largest:.3g} (tolerance {TOLERANCE:g})"
        )


def compare(pipeline: Any, exported: Exported, signature: Signature, columns: Mapping[str, Any]) -> Agreement:
    """Compare on a sample, and on rows made from it with missing values and unseen categories.

    A row disagrees when a probability or value differs beyond the tolerance, or when the label differs although
    the original's two likeliest classes are further apart than the tolerance.

    Args:
        pipeline: The original.
        exported: The graph.
        signature: Of both.
        columns: The sample, as ``batch.Layout.pack`` takes it.
    """
    reference = SklearnModel(pipeline, signature)
    batch = reference.layout.pack(columns)
    batch = batch.take(np.unique(np.linspace(0, batch.rows - 1, min(batch.rows, MOST_ROWS)).astype(np.intp)))
    try:
        model = OnnxModel(exported.data, exported.numbers, exported.strings, signature)
        wrong, sizes = _differences(reference.predict(batch), _run(model, batch), signature)
    except (Damaged, _GraphFailed) as error:
        return Agreement(batch.rows, batch.rows, float("nan"), str(error))
    for probe in _probes(batch):
        try:
            expected = reference.predict(probe)
        except (Invalid, UserCodeFailed):
            continue  # the original refuses such rows, so nothing is promised
        try:
            more = _differences(expected, _run(model, probe), signature)
        except _GraphFailed as error:
            return Agreement(probe.rows, probe.rows, float("nan"), str(error))
        wrong, sizes = np.concatenate([wrong, more[0]]), np.concatenate([sizes, more[1]])
    return Agreement(len(wrong), int(wrong.sum()), float(sizes.max(initial=0.0)))


class _GraphFailed(Exception):
    pass


def _run(model: OnnxModel, batch: Batch) -> Mapping[str, Any]:
    try:
        return model.predict(batch)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise _GraphFailed(str(error).split("\n", 1)[0]) from error


def _probes(batch: Batch) -> list[Batch]:
    """A few rows with every optional input missing, and with every string one that was never seen."""
    few = batch.take(slice(0, _PROBES))
    layout: Layout = batch.layout
    made = []
    optional = [field.name for field in layout.signature.inputs if not field.required]
    if optional:
        numbers, strings = few.numbers.copy(), few.strings.copy()
        for name in optional:
            if name in layout.number_at:
                numbers[layout.number_at[name]] = np.nan
            else:
                strings[layout.string_at[name]] = None
        made.append(Batch(layout, numbers, strings))
    if layout.strings:
        strings = few.strings.copy()
        strings[:] = _UNSEEN
        made.append(Batch(layout, few.numbers, strings))
    return made


def _differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], signature: Signature
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Per row: whether it disagrees, and by how much its numbers differ."""
    if signature.task == "classification" and "probability" not in expected:
        wrong = np.asarray(expected["label"] != found["label"], np.bool_)
        return wrong, wrong.astype(np.float64)
    name = {"classification": "probability", "regression": "prediction", "anomaly": "score"}[signature.task]
    a, b = np.asarray(expected[name], np.float64), np.asarray(found[name], np.float64)
    apart = np.abs(a - b)
    apart[np.isnan(a) & np.isnan(b)] = 0.0
    apart[np.isnan(apart)] = np.inf
    scale = np.maximum(np.abs(a), np.nanstd(a)) if signature.task == "regression" and len(a) else 1.0
    beyond = apart > TOLERANCE * np.maximum(scale, np.finfo(np.float64).tiny)
    if signature.task != "classification":
        return beyond, apart
    sure = np.partition(a, -2, axis=1) if a.shape[1] > 1 else a
    clear = sure[:, -1] - sure[:, -2] > TOLERANCE
    return beyond.any(axis=1) | ((expected["label"] != found["label"]) & clear), apart.max(axis=1)
