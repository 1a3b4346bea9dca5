"""The environment a model was trained in: exact versions, as requirement lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata

_NEEDED = ("modelkeep", "numpy", "pandas", "scipy", "scikit-learn", "skops", "onnxruntime")
_EXTRAS = {"xgboost": "xgboost", "lightgbm": "lightgbm"}


@cache
def lock() -> str:
    """Every installed distribution as ``name==version``, sorted, one per line."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[_normal(name)] = f"{_normal(name)}=={distribution.version}"
    return "".join(f"{line}\n" for _, line in sorted(found.items()))


def requirements(modules: Iterable[str] = ()) -> list[str]:
    """What it takes to load and run a package, pinned.

    Args:
        modules: Top-level modules of the estimator's own classes.
    """
    names = [*_NEEDED, *(_EXTRAS[module] for module in sorted(set(modules)) if module in _EXTRAS)]
    return [f"{name}=={metadata.version(name)}" for name in names]


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
