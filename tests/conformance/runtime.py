"""What every runtime promises. Subclass ``RuntimeSuite`` and give it packages; all its tests must pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

from modelkeep.core.errors import Damaged, NotFound
from modelkeep.core.ports import Model
from modelkeep.formats import manifest, runtimes
from modelkeep.formats.batch import Layout


class Case(NamedTuple):
    """A package and what it must say.

    Attributes:
        files: The package's.
        columns: Rows, as arrays by input name.
        expected: The original's outputs for them.
        trusted: What must be trusted to load it.
    """

    files: dict[str, bytes]
    columns: dict[str, Any]
    expected: dict[str, Any]
    trusted: tuple[str, ...] = ()


class RuntimeSuite:
    """The promises. ``runtime`` names the one under test; ``tolerance`` is how far answers may differ."""

    runtime: str
    tolerance = 1e-9

    @pytest.fixture(params=["classification", "regression", "anomaly"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        raise NotImplementedError

    def load(self, case: Case) -> Model:
        """The case's model, running as the suite wants it to."""
        return runtimes.load(case.files, trusted=case.trusted)

    def test_the_package_runs_on_it(self, case: Case) -> None:
        assert manifest.read(case.files).runtime == self.runtime

    def test_it_says_what_the_original_says(self, case: Case) -> None:
        found = self.load(case).predict(case.columns)
        assert list(found) == list(case.expected)
        for name, values in case.expected.items():
            values = np.asarray(values)
            assert found[name].shape == values.shape
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[name], values, rtol=self.tolerance, atol=self.tolerance)
            else:
                assert found[name].tolist() == values.tolist()

    def test_outputs_are_those_of_the_signature(self, case: Case) -> None:
        said = runtimes.signature(case.files)
        found = self.load(case).predict(case.columns)
        kinds = {"float64": "f", "int64": "i", "bool": "b", "string": "O"}
        assert [(name, found[name].dtype.kind) for name in found] == [
            (f.name, kinds[f.type]) for f in said.outputs
        ]
        rows = len(next(iter(case.columns.values())))
        assert [found[field.name].shape for field in said.outputs] == [
            (rows, *field.shape) for field in said.outputs
        ]

    def test_rows_do_not_depend_on_each_other(self, case: Case) -> None:
        near = self.tolerance / 10  # a matrix product may round one row and many differently
        model = self.load(case)
        batch = Layout(runtimes.signature(case.files)).pack(case.columns)
        whole = model.predict(batch)
        for row in range(5):
            alone = model.predict(batch.take(slice(row, row + 1)))
            for name in whole:
                if whole[name].dtype.kind == "f":
                    np.testing.assert_allclose(alone[name][0], whole[name][row], rtol=near, atol=near / 1000)
                else:
                    assert alone[name][0] == whole[name][row]

    def test_threads_may_share_it(self, case: Case) -> None:
        model = self.load(case)
        first = next(iter(case.expected))
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: model.predict(case.columns)[first].tolist(), range(12)))
        assert all(answer == answers[0] for answer in answers)

    def test_changed_bytes_are_not_loaded(self, case: Case) -> None:
        known = manifest.read(case.files)
        usual = {"onnx": manifest.ONNX, "sklearn": manifest.SKOPS, "pyfunc": "MLmodel"}
        name = known.model or usual[known.runtime]
        for changed in (name, manifest.SIGNATURE):
            data = bytearray(case.files[changed])
            data[len(data) // 2] ^= 1
            with pytest.raises(Damaged, match=changed):
                self.load(case._replace(files={**case.files, changed: bytes(data)}))

    def test_lost_files_are_noticed(self, case: Case) -> None:
        files = {name: data for name, data in case.files.items() if name != manifest.SIGNATURE}
        with pytest.raises(Damaged, match=r"lacks signature\.json"):
            self.load(case._replace(files=files))
        with pytest.raises(NotFound, match="manifest"):
            self.load(case._replace(files={}))
