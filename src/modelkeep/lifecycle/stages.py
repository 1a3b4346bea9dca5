"""The stages of making a version, and the digest of everything each depends on.

A stage runs again only when its key is new: a key is the digest of the stage's part of the declaration, of its
inputs' keys, and of the code that does the work (this package, scikit-learn, and the user's own functions).

Where the work is done is no part of it: parts are cut and merged in the same way on every engine, so a version
made on a cluster is the one that this machine would have made, and moving to a cluster makes nothing anew.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modelkeep import __version__
from modelkeep.core import digests
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration, Origin
from modelkeep.spec.names import ALGORITHMS
from modelkeep.spec.steps import Function

NAMES = ("snapshot", "prepare", "train", "evaluate", "package", "gate", "register", "rollout")

FIELDS: dict[str, tuple[str, ...]] = {
    "snapshot": ("data.source", "data.partition"),
    "prepare": ("data", "features"),
    "train": ("train",),
    "evaluate": ("gates",),
    "gate": ("gates",),
    "package": ("trust", "description", "monitor.window", "monitor.log.mask", "deploy.in_range"),
    "register": (),
    "rollout": ("deploy", "monitor"),
}
"""The fields of the declaration that each stage depends on, beside what earlier stages depend on."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the stages for one declaration over one snapshot."""

    snapshot: str
    prepare: str
    train: str
    evaluate: str
    version: str


def keys(declaration: Declaration, snapshot: str, base: Path) -> Keys:
    """The keys for this declaration over the snapshot with this digest.

    Args:
        base: The declaration's folder, where the user's functions are looked for.
    """
    said = loading.to_builtins(declaration)
    data = {name: value for name, value in said["data"].items() if name not in ("source", "partition")}
    own = {reference: code_digest(reference, base) for reference in sorted(user_code(declaration))}
    code = {"modelkeep": __version__, "scikit-learn": _installed("scikit-learn"), "own": own}
    prepare = _key("prepare", snapshot, data, said.get("features"), code)
    train = _key("train", prepare, said.get("train"))
    evaluate = _key("evaluate", train, said.get("gates"))
    mask, in_range = declaration.monitor.log.mask, declaration.deploy.in_range
    later = [mask, in_range] if mask or in_range else []  # where neither is set, versions of earlier releases stay
    made = _key(
        "version",
        evaluate,
        declaration.model,
        declaration.description,
        declaration.monitor.window,
        declaration.trust,
        *later,
    )
    return Keys(snapshot=snapshot, prepare=prepare, train=train, evaluate=evaluate, version=made)


def differences(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two declarations differ, by path, as (before, after)."""
    if before is None:
        return {}
    old, new = dict(_flat(before)), dict(_flat(after))
    return {
        path: (old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    }


def touched(changes: dict[str, tuple[Any, Any]], stage: str) -> list[str]:
    """The changed fields that make ``stage`` run, as sentences."""
    told = []
    for path, (before, after) in changes.items():
        if stage == "prepare" and path.startswith(("data.source", "data.partition")):
            continue
        if any(path == field or path.startswith((f"{field}.", f"{field}[")) for field in FIELDS[stage]):
            told.append(f"{path}: {_short(before)} -> {_short(after)}")
    return told


def code_digest(reference: str, base: Path) -> str:
    """Digest of the file that holds a user's function, without importing it; empty when it cannot be found."""
    module = reference.partition(":")[0] if ":" in reference else reference.rpartition(".")[0]
    beside = base / Path(*module.split(".")).with_suffix(".py")
    if beside.is_file():
        return digests.of_value(beside.read_bytes())
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or _installed(top):
        return _installed(top)
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ""
    if found is None or not found.origin or not Path(found.origin).is_file():
        return ""
    return digests.of_value(Path(found.origin).read_bytes())


def _key(stage: str, *parts: Any) -> str:
    return digests.of_value([stage, *parts])


def user_code(declaration: Declaration) -> Iterator[str]:
    """The import paths of the user's functions and classes that a declaration names."""
    source = declaration.data.source
    if isinstance(source, Origin) and source.function:
        yield source.function
    yield from (step.function for step in declaration.features if isinstance(step, Function))
    names = (declaration.train.algorithm, *declaration.train.families)
    yield from (name for name in names if name not in ALGORITHMS and name != "auto")


@cache
def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return ""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
