"""Packages of models that were made elsewhere: a model folder of MLflow, or a Python function.

A folder is run by what reads its file without running code where there is such: ONNX Runtime, skops, the boosters'
own formats, PyTorch programs. Only what is left is unpickled, or given to MLflow, and only when trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.ports import Model
from modelkeep.formats import manifest as manifests
from modelkeep.formats import mlflow_folder, runtimes, samples, trusting
from modelkeep.formats.feed import Feed, Part, field_of
from modelkeep.formats.manifest import FORMAT, MANIFEST, SAMPLE, SIGNATURE, Folder, Manifest, RuntimeName, entry
from modelkeep.formats.mlflow_folder import Said
from modelkeep.formats.signature import Field, Label, Signature, Task, outputs_of

VERBATIM = "verbatim"
"""The form of a model that is given whole requests."""
_REQUEST = (Field(name="request", type="string"),)
_ANSWER = (Field(name="answer", type="string"),)


class Adopted(Struct, frozen=True, kw_only=True):
    """A package of a model made elsewhere.

    Attributes:
        runtime: What will run it.
        note: Why that and nothing faster or safer.
        content: Digest of what was there before: what trusting it means.
    """

    runtime: str
    note: str
    content: str


class _Choice(Struct, frozen=True, kw_only=True):
    """How a folder can be run."""

    runtime: RuntimeName
    fields: tuple[Field, ...]
    feed: Feed | None
    model: str = ""
    form: str = ""
    note: str = ""
    task: Task = "regression"
    classes: tuple[Label, ...] = ()


class _Found(Struct, frozen=True, kw_only=True):
    """A folder that is looked at."""

    files: Folder
    said: Said
    content: str
    trusted: tuple[str, ...]

    def signed(self) -> Feed:
        """How its inputs are fed. Raises ``Invalid`` when no signature says it, or one that none can carry."""
        if self.said.odd:
            raise Invalid(self.said.odd)
        if self.said.feed is None:
            raise Invalid(
                "has no signature, so it is not known what the model takes",
                path=mlflow_folder.FILE,
                hint="log the model with signature=mlflow.models.infer_signature(X, model.predict(X))",
            )
        return self.said.feed

    def matrix(self, dtype: str, order: Sequence[str] = ()) -> Feed | None:
        """All inputs as one matrix; None when some are no numbers, or several are tensors."""
        fields = self.said.fields
        names = [field.name for field in fields]
        if any(field.type in ("string", "timestamp") or (field.shape and len(fields) > 1) for field in fields):
            return None
        if fields[0].shape:
            part = Part(dtype=dtype, shape=(fields[0].size,), columns=(fields[0].name,))
            return Feed(kind="tensors", parts=(part,))
        if set(order) == set(names):
            names = list(order)
        return Feed(kind="tensors", parts=(Part(dtype=dtype, shape=(len(names),), columns=tuple(names)),))

    def allow(self, what: str) -> None:
        """Refuse unless its digest is trusted."""
        trusting.refuse(self.content, self.trusted, what)


def adopt(folder: Path, *, trusted: Sequence[str] = ()) -> Adopted:
    """Make a model folder of MLflow a package, by files written beside its own; the model is tried once.

    Args:
        folder: The folder, which nobody else writes to.
        trusted: Digests and names that may run.

    Raises:
        NotFound: There is no ``MLmodel``.
        Invalid: It has no signature, or one that no inputs can carry, and MLflow has no function for it either.
        Refused: Running it would run code that is not trusted; says which digest or names to trust, and how.
        MissingExtra: What would run it is not installed.
        Damaged: A file cannot be read as what it is said to be.
    """
    files = Folder(folder)
    if MANIFEST in files:
        known = manifests.verify(files)
        return Adopted(runtime=known.runtime, note=known.note, content=manifests.content(files))
    said = mlflow_folder.read(files)
    listed = _listed(files)
    found = _Found(files=files, said=said, content=manifests.content_of(listed), trusted=tuple(trusted))
    choice = _choose(found)
    return _package(files, choice, said, trusted)


def adopt_function(
    folder: Path,
    file: str,
    fields: Sequence[Field],
    sample: Mapping[str, list[Any]],
    *,
    trusted: Sequence[str] = (),
) -> Adopted:
    """Make a folder with a Python file that defines ``predict`` a package; see ``formats.function_runtime``.

    Args:
        folder: Holds the file and whatever it reads; nobody else writes to it.
        file: Its path in the folder.
        fields: Its inputs.
        sample: Rows to try it with, lists by input.
        trusted: Digests.

    Raises:
        Refused: The folder's digest is not trusted.
        Invalid: The file defines no ``predict``.
        UserCodeFailed: It raised.
    """
    choice = _Choice(runtime="function", fields=tuple(fields), feed=None, model=file, note="a Python function")
    return _package(Folder(folder), choice, Said(flavors={}, sample=dict(sample)), trusted)


def content_of(folder: Path) -> str:
    """Digest of what a folder brings, as trusting it means."""
    return manifests.content_of(_listed(Folder(folder)))


def _listed(files: Mapping[str, bytes]) -> dict[str, manifests.Entry]:
    return {name: entry(files[name]) for name in files if name not in (MANIFEST, SIGNATURE)}


def _package(
    files: Folder,
    choice: _Choice,
    said: Said,
    trusted: Sequence[str],
) -> Adopted:
    """Write what describes the model, try it, and write down what it gave."""
    gives = outputs_of(choice.task, choice.classes) if choice.classes else ()
    verbatim = choice.form == VERBATIM
    if verbatim:
        said = replace(
            said, sample={"request": [said.request]} if said.request else {}, outputs=_ANSWER, params=()
        )
    signature = Signature(
        inputs=choice.fields,
        outputs=gives,
        task=choice.task,
        classes=choice.classes,
        params=said.params,
        verbatim=verbatim,
    )
    if said.sample:
        (files.path / SAMPLE).write_bytes(msgspec.json.encode(said.sample))
    manifest = Manifest(
        format=FORMAT,
        runtime=choice.runtime,
        note=choice.note,
        task=choice.task,
        files=_listed(files),
        model=choice.model,
        form=choice.form,
        feed=choice.feed,
    )
    _write(files, manifest, signature)
    try:
        model = runtimes.load(files, trusted=trusted)
        _write(files, manifest, replace(signature, outputs=_outputs(model, signature, said)))
    except BaseException:
        (files.path / MANIFEST).unlink()  # it is no package yet
        raise
    return Adopted(runtime=choice.runtime, note=choice.note, content=manifests.content(files))


def _write(files: Folder, manifest: Manifest, signature: Signature) -> None:
    data = msgspec.json.encode(signature)
    (files.path / SIGNATURE).write_bytes(data)
    listed = dict(sorted({**manifest.files, SIGNATURE: entry(data)}.items()))
    (files.path / MANIFEST).write_bytes(msgspec.json.encode(replace(manifest, files=listed)))


def _outputs(model: Model, signature: Signature, said: Said) -> tuple[Field, ...]:
    """What the model gives, seen by trying it; what it is said to give when made-up rows do not do."""
    try:
        found = model.predict(samples.batch(signature, said.sample))
    except ModelkeepError as error:
        if said.sample or not said.outputs:
            rows = "its own input example" if said.sample else "made-up rows"
            raise Invalid(
                f"the model fails on {rows}: {error.message}",
                hint="" if said.sample else "log it with an input_example",
            ) from error
        return said.outputs
    return tuple(field_of(name, values) for name, values in found.items())


# how to run it


def _choose(found: _Found) -> _Choice:
    reasons: list[str] = []
    function = "python_function" in found.said.flavors
    known = found.said.feed is not None or not function
    for flavor, chooser in _CHOOSERS.items():
        if flavor in found.said.flavors and (known or flavor == "onnx"):  # a graph says itself what it takes
            choice = chooser(found, found.said.flavors[flavor])
            if isinstance(choice, _Choice):
                return choice
            reasons.append(choice)
    if not function:
        has = ", ".join(found.said.flavors) or "none"
        why = "".join(f"; {reason}" for reason in reasons)
        raise Invalid(f"has no flavour that can be run here; it has: {has}{why}", path=mlflow_folder.FILE)
    found.allow("the code that its MLflow folder brings")
    if found.said.feed is None:
        odd = [f"{problem.path} {problem.message}" for problem in found.said.odd]
        note = f"run by MLflow, given whole requests: {'; '.join([*reasons, *odd]) or 'it has no signature'}"
        return _Choice(runtime="pyfunc", fields=_REQUEST, feed=Feed(), form=VERBATIM, note=note)
    note = f"run by MLflow: {'; '.join(reasons)}" if reasons else "run by MLflow"
    return _Choice(runtime="pyfunc", fields=found.said.fields, feed=found.said.feed, note=note)


def _onnx(found: _Found, conf: Mapping[str, Any]) -> _Choice | str:
    from modelkeep.formats.graph_runtime import inputs_of

    path = _path(found, conf.get("data"))
    inputs = inputs_of(found.files.path / path, found.said.fields, found.said.feed)
    if isinstance(inputs, str):
        return inputs
    fields, feed = inputs
    framed = found.said.feed is not None and found.said.feed.kind == "frame"
    feed = replace(feed, gives="records" if framed else "columns")
    return _Choice(runtime="graph", fields=fields, feed=feed, model=path, note="the ONNX graph of its folder")


def _sklearn(found: _Found, conf: Mapping[str, Any]) -> _Choice | str:
    from modelkeep.formats import estimators, pickled, skops_io

    feed = found.signed()
    path = _path(found, conf.get("pickled_model", conf.get("data")))
    data = found.files[path]
    if path.endswith(".skops") or conf.get("serialization_format") == "skops":
        trusting.refuse_names(skops_io.untrusted(data, found.trusted))
        form, note = "skops", "its pipeline, kept by skops"
        estimator = skops_io.loads(data, trusted=found.trusted)
    else:
        found.allow(f"whatever is pickled in {path}")
        form, note = "pickle", "its pickled pipeline, trusted by digest"
        estimator = pickled.unpickled(data, path)
    task, classes = estimators.kind_of(estimator)
    return _Choice(
        runtime="sklearn",
        fields=found.said.fields,
        feed=feed,
        model=path,
        form=form,
        note=note,
        task=task,
        classes=classes,
    )


_PARAMS = "its signature names params, which MLflow hands to the model"


def _xgboost(found: _Found, conf: Mapping[str, Any]) -> _Choice | str:
    from modelkeep.formats.boosting_runtime import XGBooster

    found.signed()
    if found.said.params:
        return _PARAMS
    path = _path(found, conf.get("data"))
    booster = XGBooster(found.files[path])
    feed = found.matrix("float32", booster.names)
    if feed is None:
        return "its inputs are not all numbers"
    classifier = str(conf.get("model_class", "")).endswith("Classifier")
    if classifier and not booster.classes:
        return "its trees do not give probabilities"
    return _Choice(
        runtime="xgboost",
        fields=found.said.fields,
        feed=feed,
        model=path,
        note="XGBoost's own file",
        task="classification" if classifier else "regression",
        classes=tuple(range(booster.classes)) if classifier else (),
    )


def _lightgbm(found: _Found, conf: Mapping[str, Any]) -> _Choice | str:
    from modelkeep.formats.boosting_runtime import LightGBooster

    path = _path(found, conf.get("data"))
    if path.endswith((".skops", ".pkl")):
        return _sklearn(found, conf)
    found.signed()
    feed = found.matrix("float64", LightGBooster(found.files[path]).names)
    if feed is None:
        return "its inputs are not all numbers"
    return _Choice(runtime="lightgbm", fields=found.said.fields, feed=feed, model=path, note="LightGBM's own file")


def _torch(found: _Found, conf: Mapping[str, Any]) -> _Choice | str:
    from modelkeep.formats import torch_runtime

    said = found.signed()
    if found.said.params:
        return _PARAMS
    folder = str(conf.get("model_data", "data"))
    path = next((p for p in (f"{folder}/model.pt2", f"{folder}/model.pth") if p in found.files), "")
    data = found.files[_path(found, path)]
    form = torch_runtime.form_of(data)
    if form == "pickle":
        return "it is pickled; log it with torch.jit.script or serialization_format='pt2'"
    if form == "pt2" and (unsafe := torch_runtime.unsafe(data)):
        found.allow(f"what is pickled or compiled in {path}: {', '.join(unsafe[:5])}")
    feed = said if said.kind == "tensors" else found.matrix("float32")
    if feed is None:
        return "its inputs are not all numbers"
    return _Choice(
        runtime="torch", fields=found.said.fields, feed=feed, model=path, form=form, note=f"a program ({form})"
    )


_CHOOSERS: dict[str, Callable[[_Found, Mapping[str, Any]], _Choice | str]] = {
    "onnx": _onnx,
    "sklearn": _sklearn,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "pytorch": _torch,
}


def _path(found: _Found, named: Any) -> str:
    """A file of the folder that the configuration names."""
    if not isinstance(named, str) or named not in found.files:
        raise Invalid(f"names the file {named!r}, which is not in the folder", path=mlflow_folder.FILE)
    return named
