"""Load a packaged version and run it. Importing this needs neither scikit-learn nor ONNX: each comes when used."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelkeep.core.errors import Damaged, MissingExtra
from modelkeep.core.ports import Model
from modelkeep.formats import manifest as manifests
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed
from modelkeep.formats.manifest import Folder, Manifest
from modelkeep.formats.signature import Signature, from_builtins


def load(files: Mapping[str, bytes], *, trusted: Sequence[str] = (), threads: int = 1) -> Model:
    """The model of a package, verified by digest and ready to predict.

    Args:
        files: By path; ``manifest.Folder`` reads a folder's. Only what the runtime needs is read.
        trusted: Names of types and functions (``package.module.Name``) that may run on loading beside
            scikit-learn's and ours; digests of packages whose code may run.
        threads: Of one prediction.

    Raises:
        Damaged: A file's bytes do not match the manifest.
        Refused: Loading would run something not trusted; the message names it.
        NotFound: There is no manifest.
    """
    manifest = manifests.read(files)
    return _LOADERS[manifest.runtime](files, manifest, trusted, threads)


IN_PROCESS = frozenset({"onnx", "graph"})
"""Runtimes that run no code of anybody's and free what they take; all others belong in a process of their own."""

_LARGE = 16 << 20
"""Bytes of a file beside a graph from which on it is worth sharing, as weights."""

_NEEDS = {
    "sklearn": (
        *("modelkeep.formats.sklearn_runtime", "modelkeep.formats.skops_io"),
        *("sklearn.compose", "sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline", "sklearn.svm"),
    ),
    "torch": ("modelkeep.formats.torch_runtime", "torch.export.pt2_archive", "torch._export.serde.serialize"),
    "xgboost": ("modelkeep.formats.boosting_runtime", "xgboost"),
    "lightgbm": ("modelkeep.formats.boosting_runtime", "lightgbm"),
    "pyfunc": ("modelkeep.formats.pyfunc_runtime", "modelkeep.formats.sklearn_runtime"),
    "function": ("modelkeep.formats.function_runtime",),
}


def prepare(runtime: str) -> None:
    """Import what loading and running packages of this runtime will need, as far as it is installed."""
    for name in _NEEDS.get(runtime, ()):
        with contextlib.suppress(ImportError, MissingExtra):
            importlib.import_module(name)


def signature(files: Mapping[str, bytes]) -> Signature:
    """The signature of a package, verified by digest."""
    return _signature(files, manifests.read(files))


def _signature(files: Mapping[str, bytes], manifest: Manifest) -> Signature:
    try:
        data = msgspec.json.decode(manifests.take(files, manifest, manifests.SIGNATURE))
    except msgspec.DecodeError as error:
        raise Damaged(f"{manifests.SIGNATURE} cannot be read: {error}") from error
    return from_builtins(data)


def _load_onnx(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.onnx_runtime import OnnxModel

    graph: Path | bytes
    weights: tuple[str, bytes] | None = None
    if manifests.WEIGHTS not in manifest.files:
        graph = manifests.take(files, manifest, manifests.ONNX)
    elif isinstance(files, Folder):
        graph = manifests.located(files, manifest, manifests.ONNX)
        weights = manifests.located(files, manifest, manifests.WEIGHTS).name, b""
    else:
        graph = manifests.take(files, manifest, manifests.ONNX)
        weights = manifests.WEIGHTS, manifests.take(files, manifest, manifests.WEIGHTS)
    said = _signature(files, manifest)
    return OnnxModel(graph, manifest.numbers, manifest.strings, said, threads=threads, weights=weights)


def _load_sklearn(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.sklearn_runtime import SklearnModel
    from modelkeep.formats.skops_io import loads

    data = manifests.take(files, manifest, manifest.model or manifests.SKOPS)
    if manifest.form == "pickle":
        from modelkeep.formats import pickled, trusting

        trusting.trust(files, trusted, f"whatever is pickled in {manifest.model}")
        pipeline = pickled.unpickled(data, manifest.model)
    else:
        pipeline = loads(data, trusted=trusted)
    return SklearnModel(pipeline, _signature(files, manifest), manifest.feed)


def _load_graph(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.graph_runtime import GraphModel

    graph: Path | bytes
    mapped = False
    if isinstance(files, Folder):  # with its external weights beside it, all verified
        for name in _beside(manifest):
            manifests.located(files, manifest, name)
            mapped = mapped or (name != manifest.model and manifest.files[name].size >= _LARGE)
        graph = files.path / manifest.model
    elif len(_beside(manifest)) > 1:  # ONNX Runtime finds external weights on the disk alone
        from modelkeep.formats import trusting

        owner = _Loading()
        return _load_graph(Folder(trusting.on_disk(files, manifest, owner)), manifest, trusted, threads)
    else:
        graph = manifests.take(files, manifest, manifest.model)
    return GraphModel(graph, _signature(files, manifest), _feed(manifest), threads=threads, mapped=mapped)


class _Loading:
    """Owns a folder while a graph is loaded from it."""


def _beside(manifest: Manifest) -> list[str]:
    """The files in the folder of the model's own, which its weights may be in."""
    folder = manifest.model.rpartition("/")[0]
    return [name for name in manifest.files if name.rpartition("/")[0] == folder]


def _load_torch(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats import torch_runtime, trusting

    data = manifests.take(files, manifest, manifest.model)
    if manifest.form == "pt2" and (unsafe := torch_runtime.unsafe(data)):
        trusting.trust(files, trusted, f"what is pickled or compiled in {manifest.model}: {', '.join(unsafe[:5])}")
    return torch_runtime.TorchModel(
        data, manifest.form, _signature(files, manifest), _feed(manifest), threads=threads
    )


def _load_boosted(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.boosting_runtime import BoostedModel, LightGBooster, XGBooster

    data = manifests.take(files, manifest, manifest.model)
    kind = XGBooster if manifest.runtime == "xgboost" else LightGBooster
    return BoostedModel(kind(data, threads), _signature(files, manifest), _feed(manifest))


def _load_pyfunc(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.pyfunc_runtime import PyfuncModel, VerbatimModel

    kind = VerbatimModel if manifest.form == "verbatim" else PyfuncModel
    return kind(files, manifest, _signature(files, manifest), trusted)


def _load_function(files: Mapping[str, bytes], manifest: Manifest, trusted: Sequence[str], threads: int) -> Model:
    from modelkeep.formats.function_runtime import FunctionModel

    return FunctionModel(files, manifest, _signature(files, manifest), trusted)


def _feed(manifest: Manifest) -> Feed:
    if manifest.feed is None:
        raise Damaged(f"the manifest does not say what the {manifest.runtime} model takes")
    return manifest.feed


_LOADERS: dict[str, Callable[[Mapping[str, bytes], Manifest, Sequence[str], int], Model]] = {
    "onnx": _load_onnx,
    "sklearn": _load_sklearn,
    "graph": _load_graph,
    "torch": _load_torch,
    "xgboost": _load_boosted,
    "lightgbm": _load_boosted,
    "pyfunc": _load_pyfunc,
    "function": _load_function,
}


def latency(
    model: Model, signature: Signature, columns: Mapping[str, Any], *, n: int = 500, budget: float = 2.0
) -> dict[str, float]:
    """Time of warm predictions of single rows, in milliseconds.

    Args:
        model: Loaded.
        signature: Its signature.
        columns: Rows to draw from, as ``batch.Layout.pack`` takes them.
        n: Predictions timed.
        budget: Seconds after which measuring stops early, though not before 30 predictions.

    Returns:
        ``p50``, ``p95``, ``p99`` and ``mean`` in ms, ``n`` as measured.
    """
    batch = Layout(signature).pack(columns)
    rows = [
        batch.take(slice(row, row + 1)) for row in np.linspace(0, batch.rows - 1, min(n, batch.rows)).astype(int)
    ]
    for row in rows[:20]:
        model.predict(row)
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < n and (len(taken) < 30 or time.perf_counter() - start < budget):
        row = rows[len(taken) % len(rows)]
        before = time.perf_counter()
        model.predict(row)
        taken.append((time.perf_counter() - before) * 1e3)
    p50, p95, p99 = (float(value) for value in np.percentile(taken, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "mean": float(np.mean(taken)), "n": float(len(taken))}
