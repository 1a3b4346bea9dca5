"""Packages of every runtime with what they must say, for the suite that holds runtimes to their promises."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from runtime import Case
from test_runtimes import packaged


def sklearn_case(task: str) -> Case:
    """A pipeline of scikit-learn's own classes, told to run as such."""
    package, columns, expected = packaged(task, own=False)
    return Case(as_sklearn(package.files), columns, dict(expected))


def as_sklearn(files: dict[str, bytes]) -> dict[str, bytes]:
    """The package run by scikit-learn rather than by its graph."""
    return {
        **files,
        "manifest.json": files["manifest.json"].replace(b'"runtime": "onnx"', b'"runtime": "sklearn"'),
    }
