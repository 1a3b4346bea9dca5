"""A network that a user's function returns is kept and served as a graph that answers as it does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Invalid, Refused
from modelkeep.formats import network, skops_io
from modelkeep.formats.agreement import compare
from modelkeep.formats.inference import infer
from modelkeep.formats.onnx.export import export

torch = pytest.importorskip("torch")

ROWS = np.random.default_rng(0).normal(size=(50, 4))
NAMES = ["a", "b", "c", "d"]


def layers(width, last=None):
    torch.manual_seed(0)
    parts = [
        torch.nn.Linear(4, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(8, width),
    ]
    return torch.nn.Sequential(*parts, *([last] if last else []))


@pytest.mark.parametrize(
    ("made", "task", "classes"),
    [
        (layers(1), "regression", None),
        (layers(1, torch.nn.Sigmoid()), "classification", (False, True)),
        (layers(2, torch.nn.Softmax(dim=1)), "classification", ("no", "yes")),
        (layers(3, torch.nn.Softmax(dim=1)), "classification", (0, 1, 2)),
    ],
    ids=["values", "one-probability", "two", "three"],
)
def test_it_answers_as_the_network_does_also_when_kept_and_exported(made, task, classes):
    estimator = network.estimator_of(made, ROWS, task, classes)
    with torch.inference_mode():
        said = made(torch.tensor(ROWS, dtype=torch.float32)).numpy().reshape(len(ROWS), -1)
    if classes is None:
        np.testing.assert_allclose(estimator.predict(ROWS), said[:, 0], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(estimator.predict_proba(ROWS)[:, -1], said[:, -1], atol=1e-5)
        codes = said.argmax(axis=1) if said.shape[1] > 1 else (said[:, 0] > 0.5).astype(int)
        assert estimator.predict(ROWS).tolist() == [classes[code] for code in codes]
    kept = skops_io.dumps(estimator)
    assert skops_io.untrusted(kept) == []
    again = skops_io.loads(kept)
    assert again.predict(sparse.csr_matrix(ROWS)).tolist() == estimator.predict(ROWS).tolist()

    pipeline = Pipeline([("features", "passthrough"), ("model", again)])
    columns = {name: ROWS[:, place] for place, name in enumerate(NAMES)}
    signature = infer(pa.table(columns), NAMES, task, classes or ())
    assert compare(pipeline, export(pipeline, signature), signature, columns).disagree == 0
    assert len(pipeline.predict(pd.DataFrame(columns))) == 50


@pytest.mark.parametrize(
    ("made", "task", "classes", "told"),
    [
        (layers(3), "classification", (0, 1, 2), "no probabilities"),
        (layers(2), "regression", None, r"needs \(50, 1\)"),
        (layers(2), "classification", (0, 1, 2), r"needs \(50, 3\)"),
        (layers(1), "anomaly", None, "classification and regression"),
    ],
)
def test_answers_of_another_kind_are_told(made, task, classes, told):
    with pytest.raises(Invalid, match=told) as caught:
        network.estimator_of(made, ROWS, task, classes)
    assert "train.algorithm" in str(caught.value)


def test_one_that_cannot_be_written_or_draws_is_refused():
    class Draws(torch.nn.Module):
        def forward(self, x):
            return x.sum(dim=1) + torch.rand_like(x[:, 0])

    class Counts(torch.nn.Module):
        def forward(self, x, counts):
            return x[:, 0] * counts

    class OneSize(torch.nn.Module):
        def forward(self, x):
            return x[:, 0] + torch.ones(len(x))

    with pytest.raises(Refused, match="does not run on 50 rows"):
        network.estimator_of(OneSize(), ROWS, "regression", None)
    with pytest.raises(Refused, match="answers otherwise"):
        network.estimator_of(Draws(), ROWS, "regression", None)
    with pytest.raises(Refused, match=r"Counts cannot be written as ONNX: .*counts"):
        network.estimator_of(Counts(), ROWS, "regression", None)


def test_a_graph_is_not_trained():
    with pytest.raises(Refused, match="only predicts"):
        network.estimator_of(layers(1), ROWS, "regression", None).fit(ROWS)
    assert network.is_network(layers(1)) and not network.is_network(object())
