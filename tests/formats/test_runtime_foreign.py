"""Models made elsewhere keep the promises of the port, once they are packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from runtime import Case, RuntimeSuite
from runtime_cases import FLOAT32, RUNTIMES, foreign_case


class Foreign(RuntimeSuite):
    kind: str

    @pytest.fixture
    def case(self) -> Case:
        return foreign_case(self.kind)


def _suite(kind: str) -> type[Foreign]:
    about = {"kind": kind, "runtime": RUNTIMES.get(kind, kind), "tolerance": 1e-5 if kind in FLOAT32 else 1e-9}
    return type(f"Test{kind.title()}", (Foreign,), about)


TestSkops, TestPickle = _suite("skops"), _suite("pickle")
TestGraph, TestXgboost, TestLightgbm = _suite("graph"), _suite("xgboost"), _suite("lightgbm")
TestPyfunc, TestFunction = _suite("pyfunc"), _suite("function")
TestTorchscript, TestPt2 = _suite("torchscript"), _suite("pt2")
