"""Packaging: what will be served, checked against the original, timed, and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import BlobStore
from modelkeep.data import columns
from modelkeep.formats import frames, package, runtimes, samples
from modelkeep.formats.inference import bounded, infer
from modelkeep.formats.package import Package
from modelkeep.formats.signature import Field, Signature
from modelkeep.lifecycle.judging import Judged, columns_of
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.making import Making
from modelkeep.monitor import reference
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.steps import Encode
from modelkeep.spec.units import seconds
from modelkeep.store.blobs import put_tree
from modelkeep.train.results import GateResult

SAMPLE = 2000
"""Rows on which the packaged model and the original must agree."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A package that is not yet kept.

    Attributes:
        built: Its files.
        signature: What it takes and gives.
        facts: For the model card.
        environment: Digest of the environment lock.
    """

    built: Package
    signature: Signature
    facts: dict[str, Any]
    environment: str

    @property
    def runtime(self) -> str:
        """What will run it."""
        return self.built.runtime

    @property
    def note(self) -> str:
        """Why it is not ONNX, if it is not."""
        return self.built.note

    def keep(self, blobs: BlobStore, judged: Judged, decided: Sequence[GateResult]) -> str:
        """Write the model card and keep the package; returns its digest."""
        described = package.describe(
            self.built,
            card=self.facts,
            evaluation=msgspec.to_builtins(judged.evaluation),
            gates=msgspec.to_builtins(list(decided)),
        )
        return put_tree(blobs, described.files)


def pack(keep: Keep, declaration: Declaration, making: Making, judged: Judged) -> Packaged:
    """Build the package.

    Raises:
        Invalid: ``deploy.in_range`` names an input that is neither a number nor a time.
        Refused: The model holds code that is not trusted.
    """
    trained, prepared = making.trained, making.prepared
    table = making.watched_table
    said = infer(
        table,
        prepared.inputs,
        trained.task,
        trained.classes,
        strict=_strict(declaration, table.select(prepared.inputs)),
    )
    if making.sampled:
        said = msgspec.structs.replace(said, inputs=making.whole_fields([f.name for f in said.inputs if f.strict]))
    said = msgspec.structs.replace(said, inputs=bounded(said.inputs, _ranges(declaration, said.inputs)))
    watched = [name for name in prepared.inputs if name not in declaration.monitor.drift.exclude]
    built = package.build(
        making.pipeline,
        said,
        making.test_table.slice(0, SAMPLE),
        rows=samples.of(frames.columns_of(_few(table), said), said, declaration.monitor.log.mask),
        trust=declaration.trust,
        extra={
            reference.FILE: reference.build(
                table, declaration.data.time, watched, seconds(declaration.monitor.window), judged.held_out
            )
        },
    )
    facts = {
        "model": declaration.model,
        "description": declaration.description,
        "algorithm": trained.algorithm,
        "parameters": trained.params,
        "snapshot": making.snapshot.digest,
        "training rows": prepared.rows[0],
        "test rows": prepared.rows[1],
        "rows set aside by checks": prepared.quarantined,
    }
    if making.sampled:
        facts |= {"rows watched for drift": table.num_rows, "rows compared": making.test_table.num_rows}
    lock = keep.blobs.put(built.files["environment.txt"])
    return Packaged(built=built, signature=runtimes.signature(built.files), facts=facts, environment=lock)


def _few(table: pa.Table) -> pa.Table:
    """Some rows, evenly chosen: the same of equal tables."""
    return table.take(np.unique(np.linspace(0, max(table.num_rows - 1, 0), samples.ROWS).astype(np.int64)))


def _strict(declaration: Declaration, inputs: pa.Table) -> list[str]:
    """Inputs whose unseen categories are refused."""
    known = columns.kinds(inputs)
    return [
        name
        for index, step in enumerate(declaration.features)
        if isinstance(step, Encode) and step.unseen == "error"
        for name in columns.resolve(step.columns, known, f"features[{index}].encode.columns")
    ]


_KINDS: dict[str, columns.Kind] = {
    "int64": "numeric",
    "float64": "numeric",
    "bool": "boolean",
    "string": "categorical",
    "timestamp": "time",
}


def _ranges(declaration: Declaration, fields: Sequence[Field]) -> dict[str, tuple[float | None, float | None]]:
    """Inputs that refuse what is out of range, with the ends that the declaration states."""
    known = {field.name: _KINDS[field.type] for field in fields}
    checks = declaration.data.checks.columns
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in columns.resolve(declaration.deploy.in_range, known, "deploy.in_range"):
        if known[name] not in ("numeric", "time"):
            hint = "for categories, say encode: {unseen: error} under features"
            raise Invalid(f"{name!r} is {known[name]}; it has no range", path="deploy.in_range", hint=hint)
        stated = checks.get(name)
        numeric = stated is not None and not stated.off and known[name] == "numeric"
        found[name] = (stated.min, stated.max) if stated is not None and numeric else (None, None)
    return found


def latencies(packaged: Packaged, making: Making) -> dict[str, float]:
    """Time of single predictions by the packaged model, as gates name it."""
    names = [field.name for field in packaged.signature.inputs]
    rows = columns_of(making.test_table.slice(0, SAMPLE), names)
    model = runtimes.load(packaged.built.files, trusted=making.declaration.trust)
    taken = runtimes.latency(model, packaged.signature, rows, budget=0.5)
    return {f"latency_ms.{name}": value for name, value in taken.items() if name.startswith("p")}
