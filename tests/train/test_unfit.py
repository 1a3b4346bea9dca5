"""Values that a fitted step or model does not take: an error that names the column and the rows, wherever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.errors import Invalid, UserCodeFailed
from modelkeep.data.features import fit as fit_features
from modelkeep.formats.frames import columns_of
from modelkeep.formats.inference import infer
from modelkeep.formats.onnx.export import Unconvertible, export
from modelkeep.formats.sklearn_runtime import SklearnModel
from modelkeep.spec import steps
from modelkeep.spec.declaration import Train
from modelkeep.train import predict
from modelkeep.train.fit import fit

ROWS = 40
INPUTS = ["a", "n", "color"]
ENCODED = steps.Encode(columns=("color",))
STRICT = steps.Encode(columns=("color",), unseen="error")


def table(**changed) -> pa.Table:
    made = {
        "a": np.arange(ROWS, dtype=float).tolist(),
        "n": [i % 4 for i in range(ROWS)],
        "color": [["red", "green", "blue"][i % 3] for i in range(ROWS)],
        "y": [i % 2 for i in range(ROWS)],
    }
    for name, (rows, value) in changed.items():
        made[name] = [value if i in rows else old for i, old in enumerate(made[name])]
    return pa.table(made)


def fitted(chain: list, algorithm: str = "logistic_regression"):
    transformer = fit_features(chain, table(), INPUTS).to_sklearn()
    return fit(Train(algorithm=algorithm), table(), "y", INPUTS, transformer, base=Path()).pipeline


CASES = [
    (
        [steps.Bin(columns=("a",)), ENCODED],
        {"a": ((3, 7), None)},
        "'a' is missing, which bin does not take",
        "3, 7",
    ),
    ([ENCODED], {"a": ((5,), None)}, "'a' is missing or infinite, which LogisticRegression", "5"),
    ([STRICT], {"color": ((1, 9), "violet")}, "'color' is 'violet', which was never seen in training", "1, 9"),
    ([STRICT], {"color": ((2,), None)}, "'color' is missing, which was never seen in training", "2"),
    (
        [steps.Encode(columns=("n",), method="ordinal", unseen="error"), ENCODED],
        {"n": (range(6, 16), 77)},
        "'n' is 77.0, which was never seen in training",
        "6, 7, 8, 9, 10, ...",
    ),
]


@pytest.mark.parametrize(("chain", "changed", "said", "rows"), CASES)
def test_rows_kept_for_evaluation(chain: list, changed: dict, said: str, rows: str) -> None:
    count = len(next(iter(changed.values()))[0])
    with pytest.raises(Invalid) as caught:
        predict.outputs(fitted(chain), table(**changed), INPUTS, "classification", (0, 1))
    assert said in str(caught.value)
    assert f"in {count} of {ROWS} rows ({rows})" in str(caught.value)
    assert caught.value.hint


def test_places_are_those_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK", 15)
    pipeline = fitted([ENCODED])
    with pytest.raises(Invalid, match=r"\(31\)"):
        predict.outputs(pipeline, table(a=((31,), None)), INPUTS, "classification", (0, 1))


@pytest.mark.parametrize(("chain", "changed", "said", "rows"), CASES)
def test_rows_served(chain: list, changed: dict, said: str, rows: str) -> None:
    pipeline = fitted(chain)
    wrong = table(**changed)
    model = SklearnModel(pipeline, infer(wrong, INPUTS, "classification", (0, 1)))
    with pytest.raises(Invalid) as caught:
        model.predict(columns_of(wrong, model.signature))
    first = caught.value.problems[0]
    name = next(iter(changed))
    assert first.path == f"inputs.{name}[{rows.split(',', maxsplit=1)[0]}]"
    assert said.split("' ", 1)[1].startswith(first.message.split(" which ")[0])
    assert len(caught.value.problems) == len(changed[name][0])


@pytest.mark.parametrize("rows", [40, 300])  # among the first rows, which teach the layout; beyond them
def test_training_rows(rows: int) -> None:
    data = pa.concat_tables([*[table()] * (rows // ROWS - 1), table(a=((4,), None))])
    chain = [steps.Bin(columns=("a",)), ENCODED]
    last = data.num_rows - ROWS + 4
    with pytest.raises(
        Invalid, match=rf"'a' is missing, which bin does not take, in 1 of .* \({last}\)"
    ) as caught:
        transformer = fit_features(chain, data, INPUTS).to_sklearn()
        fit(Train(algorithm="logistic_regression"), data, "y", INPUTS, transformer, base=Path())
    assert "impute" in caught.value.hint


def test_what_is_no_fault_of_the_values_stays_the_models() -> None:
    pipeline = fitted([ENCODED])
    pipeline[-1].coef_ = np.zeros((1, 2))
    with pytest.raises(UserCodeFailed, match="matmul"):
        predict.outputs(pipeline, table(), INPUTS, "classification", (0, 1))


def test_a_graph_does_not_answer_what_the_original_refuses() -> None:
    chain, changed = CASES[-1][:2]
    with pytest.raises(Unconvertible, match="numbers that it has not seen"):
        export(fitted(chain), infer(table(**changed), INPUTS, "classification", (0, 1)))
