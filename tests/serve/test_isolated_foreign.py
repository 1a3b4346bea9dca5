"""Models made elsewhere keep the promises of the port in a process of their own, too."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from isolated_kit import written
from runtime import Case, RuntimeSuite
from runtime_cases import FLOAT32, RUNTIMES, foreign_case, sklearn_case

from modelkeep.formats import runtimes
from modelkeep.serve.isolated import IsolatedModel
from modelkeep.serve.isolated_keeper import Keeper


class Isolated(RuntimeSuite):
    kind: str

    @pytest.fixture(autouse=True)
    def _where(self, tmp_path: Path, keeper: Keeper) -> Iterator[None]:
        self.folder, self.keeper = tmp_path, keeper
        self.made: list[IsolatedModel] = []
        yield
        for model in self.made:
            model.close()

    @pytest.fixture
    def case(self) -> Case:
        return sklearn_case("classification") if self.kind == "sklearn" else foreign_case(self.kind)

    def load(self, case: Case) -> IsolatedModel:
        files = written(case.files, self.folder / str(time.monotonic_ns()))
        signature = runtimes.signature(files)
        model = IsolatedModel(self.keeper, self.runtime, files.path, signature, trusted=case.trusted)
        self.made.append(model)
        return model


def _suite(kind: str) -> type[Isolated]:
    about = {"kind": kind, "runtime": RUNTIMES.get(kind, kind), "tolerance": 1e-5 if kind in FLOAT32 else 1e-9}
    return type(f"TestIsolated{kind.title()}", (Isolated,), about)


TestIsolatedSklearn, TestIsolatedPickle = _suite("sklearn"), _suite("pickle")
TestIsolatedXgboost, TestIsolatedLightgbm = _suite("xgboost"), _suite("lightgbm")
TestIsolatedPyfunc, TestIsolatedFunction = _suite("pyfunc"), _suite("function")
TestIsolatedTorchscript, TestIsolatedPt2 = _suite("torchscript"), _suite("pt2")
