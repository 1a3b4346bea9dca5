"""Build the package of a version: everything it takes to run, judge and reproduce it, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from modelkeep.formats import card as cards
from modelkeep.formats import environment, mlflow_files, plots, skops_io
from modelkeep.formats import manifest as manifests
from modelkeep.formats.agreement import compare
from modelkeep.formats.frames import columns_of
from modelkeep.formats.manifest import (
    FORMAT,
    MANIFEST,
    ONNX,
    SAMPLE,
    SIGNATURE,
    SKOPS,
    WEIGHTS,
    Manifest,
    RuntimeName,
    entry,
)
from modelkeep.formats.onnx.export import export
from modelkeep.formats.onnx.graph import Exported, Unconvertible
from modelkeep.formats.onnx.weights import apart
from modelkeep.formats.runtimes import signature as read_signature
from modelkeep.formats.signature import Signature, outputs_of

CARD = "README.md"
EVALUATION = "evaluation.json"
ENVIRONMENT = "environment.txt"


@dataclass(frozen=True, slots=True)
class Package:
    """A version's files.

    Attributes:
        files: By path. Equal models, facts and environments give equal bytes.
        runtime: What serves it.
        note: Why that is not ONNX; empty when it is.
    """

    files: dict[str, bytes]
    runtime: RuntimeName
    note: str


def build(
    pipeline: Any,
    signature: Signature,
    sample: pa.Table,
    *,
    rows: Mapping[str, Sequence[Any]] | None = None,
    trust: Sequence[str] = (),
    extra: Mapping[str, bytes] | None = None,
) -> Package:
    """Write a fitted pipeline down, as ONNX where that gives the same answers.

    Args:
        pipeline: Fitted scikit-learn Pipeline of a DataFrame with the signature's inputs.
        signature: From ``signature.infer``; its outputs are set by what the pipeline gives.
        sample: Rows on which ONNX and the original must agree; at most 2,000 are used.
        rows: What a server warms up with, from ``samples.of``; without, it makes some up.
        trust: Names of the user's types and functions that may run on loading.
        extra: More files to keep in the package.

    Raises:
        Refused: The pipeline holds types or functions that are not trusted (named exactly), or that cannot be
            kept without pickle.
    """
    original = skops_io.dumps(pipeline)
    types = skops_io.named_types(original)
    foreign = [name for name in (*types, *skops_io.functions(pipeline)) if not skops_io.known(name)]
    own = [name for name in foreign if name not in skops_io.VOUCHED]
    skops_io.refuse(name for name in own if name not in trust)
    if signature.task == "classification":
        gives = outputs_of("classification", signature.classes, probability=hasattr(pipeline, "predict_proba"))
        signature = msgspec.structs.replace(signature, outputs=gives)
    exported, note = _convert(pipeline, signature, sample)
    runtime: RuntimeName = "onnx" if exported else "sklearn"
    requirements = environment.requirements(name.partition(".")[0] for name in foreign)
    files = {
        **(extra or {}),
        SKOPS: original,
        SIGNATURE: _json(signature),
        ENVIRONMENT: environment.lock().encode(),
        **mlflow_files.files(signature, runtime=runtime, requirements=requirements, skops_types=types),
    }
    if rows:
        files[SAMPLE] = msgspec.json.encode(rows, order="sorted")
    if exported:
        files[ONNX], weights = apart(exported.data, WEIGHTS)
        files |= {WEIGHTS: weights} if weights else {}
    manifest = Manifest(
        format=FORMAT,
        runtime=runtime,
        note=note,
        task=signature.task,
        files={},
        numbers=exported.numbers if exported else (),
        strings=exported.strings if exported else (),
        trust=tuple(sorted(own)),
    )
    return _sealed(files, manifest)


def describe(
    package: Package,
    *,
    card: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    gates: Sequence[Mapping[str, Any]] = (),
) -> Package:
    """The package with its model card, its evaluation and their plots.

    Args:
        package: As built; its gates could only be decided once it was there to be timed.
        card: Facts for the model card: ``model``, ``description`` and whatever else should be listed.
        evaluation: JSON types, as ``msgspec.to_builtins(train.evaluate.Evaluation)``.
        gates: JSON types, as ``msgspec.to_builtins(train.gates.GateResult)``.
    """
    evaluation = dict(evaluation or {})
    pictures = {f"plots/{name}": svg.encode() for name, svg in plots.of_evaluation(evaluation).items()}
    text = cards.write(
        read_signature(package.files),
        facts=card or {},
        evaluation=evaluation,
        gates=gates,
        plots=list(pictures),
        runtime=package.runtime,
        note=package.note,
    )
    told = {**evaluation, **({"gates": list(gates)} if gates else {})}
    files = {**package.files, **pictures, CARD: text.encode(), EVALUATION: _json(told)}
    del files[MANIFEST]
    return _sealed(files, manifests.read(package.files))


def _convert(pipeline: Any, signature: Signature, sample: pa.Table) -> tuple[Exported | None, str]:
    """The graph, or why there is none."""
    try:
        exported = export(pipeline, signature)
    except Unconvertible as error:
        return None, f"served by scikit-learn: {error}"
    agreement = compare(pipeline, exported, signature, columns_of(sample, signature))
    if agreement.disagree:
        return None, f"served by scikit-learn: {agreement}"
    return exported, ""


def _sealed(files: Mapping[str, bytes], manifest: Manifest) -> Package:
    listed = {name: entry(files[name]) for name in sorted(files)}
    manifest = msgspec.structs.replace(manifest, files=listed)
    sealed = dict(sorted({**files, MANIFEST: _json(manifest)}.items()))
    return Package(sealed, manifest.runtime, manifest.note)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2)
