"""Loading declarations: everything that may be written, and everything that is wrong with what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelkeep.core.errors import Invalid, NotFound, Problem
from modelkeep.spec.declaration import Data, Declaration, Deploy, Monitor, Origin, Range, Split, Train, Tune
from modelkeep.spec.loading import check, from_builtins, load, load_text, to_builtins
from modelkeep.spec.steps import (
    Cast,
    ClipOutliers,
    DropDuplicates,
    DropMissing,
    Encode,
    Filter,
    Impute,
    Rename,
    Scale,
)

BLUEPRINT = """
model: flights
description: Will this flight arrive more than 15 minutes late?

data:
  source: data/flights/*.parquet        # file, folder, glob
  target: late
  key: flight_id
  time: scheduled_at
  clean:
    - drop_duplicates
    - drop_missing: [late]
    - clip_outliers: {columns: [distance], method: iqr}
  split: {test: 0.2, by: key}

features:
  - impute: {columns: numeric, strategy: median}
  - scale: {columns: numeric, method: standard}
  - encode: {columns: [carrier, origin, dest], method: onehot}

train:
  algorithm: hist_gradient_boosting
  params: {learning_rate: 0.1}
  tune: {trials: 30, space: {max_leaf_nodes: [15, 31, 63]}}
  metric: roc_auc

gates:
  - roc_auc >= 0.60
  - roc_auc >= champion.roc_auc - 0.005
  - slice(carrier).roc_auc >= 0.55
  - latency_ms.p99 <= 5

deploy:
  endpoint: flights
  rollout: [shadow 10m, canary 5% 10m, canary 50% 10m]
  abort: [error_rate > 1%, latency_ms.p99 > 50]
  replicas: {min: 1, max: 4}

monitor:
  drift: {false_alarms: 1 per 1000 windows}
  window: 10m
  log: {sample: 1.0, mask: [passenger_email]}

update:
  when: [drift, performance_drop, new_rows >= 10000, "cron 0 3 * * *"]
"""


def minimal(**data: object) -> Data:
    return Data(source="rows.csv", target="y", **data)  # type: ignore[arg-type]


def problems_of(text: str) -> dict[str, Problem]:
    with pytest.raises(Invalid) as caught:
        load_text(text, "m.yaml")
    return {problem.path: problem for problem in caught.value.problems}


def body(**sections: str) -> str:
    known = {"model": "m", "data": "{source: rows.csv, target: y}", **sections}
    return "\n".join(f"{key}: {value}" for key, value in known.items())


def test_the_blueprint_loads() -> None:
    declaration = load_text(BLUEPRINT)
    assert declaration.data.clean == (
        DropDuplicates(),
        DropMissing(columns=("late",)),
        ClipOutliers(columns=("distance",)),
    )
    assert declaration.features == (
        Impute(columns="numeric"),
        Scale(),
        Encode(columns=("carrier", "origin", "dest")),
    )
    assert declaration.train == Train(
        algorithm="hist_gradient_boosting",
        params={"learning_rate": 0.1},
        tune=Tune(trials=30, space={"max_leaf_nodes": (15, 31, 63)}),
        metric="roc_auc",
    )
    assert declaration.deploy.rollout == ("shadow 10m", "canary 5% 10m", "canary 50% 10m")
    assert declaration.update.when[-1] == "cron 0 3 * * *"
    assert declaration.endpoint == "flights"
    assert declaration.keys == ("flight_id",)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("drop_missing: [late]", DropMissing(columns=("late",))),
        ("drop_missing: late", DropMissing(columns=("late",))),
        ("drop_missing:", DropMissing()),
        ("drop_duplicates", DropDuplicates()),
        ("clip_outliers: numeric", ClipOutliers()),
        ("cast: {a: int}", Cast(columns={"a": "int"})),
        ("cast: {columns: {a: int}}", Cast(columns={"a": "int"})),
        ("cast: {columns: int}", Cast(columns={"columns": "int"})),
        ("cast: {1: int}", Cast(columns={"1": "int"})),
        ("rename: {a: b}", Rename(columns={"a": "b"})),
        ('filter: "distance > 0"', Filter(where="distance > 0")),
        ("filter: {where: distance > 0}", Filter(where="distance > 0")),
    ],
)
def test_short_forms_of_cleaning_steps(written: str, meant: object) -> None:
    text = body(data=f"\n  source: rows.csv\n  target: y\n  clean:\n    - {written}\n")
    declaration = load_text(text)
    assert declaration.data.clean == (meant,)
    assert from_builtins(to_builtins(declaration)) == declaration


def test_short_forms_of_other_fields() -> None:
    text = body(
        data="{source: {url: 'sqlite:///a.db', query: select 1}, target: y, key: [a, b]}",
        train="{tune: {space: {depth: [1, none], rate: {low: 1e-3, high: 1, log: true}}}}",
    )
    declaration = load_text(text)
    assert declaration.data.source == Origin(url="sqlite:///a.db", query="select 1")
    assert declaration.keys == ("a", "b")
    assert declaration.train.tune is not None
    assert declaration.train.tune.space == {"depth": (1, "none"), "rate": Range(low=0.001, high=1.0, log=True)}


def test_plain_scalars_follow_yaml_1_2() -> None:
    text = body(
        train="{params: {a: no, b: 1e-3, c: 10:30, d: 010, e: .inf, f: null, g: 'true', h: 0x10, i: 2013-01-01}}"
    )
    assert load_text(text).train.params == {
        "a": "no",
        "b": 0.001,
        "c": "10:30",
        "d": 10,
        "e": float("inf"),
        "f": None,
        "g": "true",
        "h": 16,
        "i": "2013-01-01",
    }


def test_anchors_and_merges() -> None:
    text = body(
        data="{source: rows.csv, target: y, exclude: &ids [a, b]}",
        monitor="\n  drift: {exclude: *ids}\n  log: &log {sample: 0.5}",
        deploy="{replicas: {<<: {min: 1, max: 2}, max: 3}}",
    )
    declaration = load_text(text)
    assert declaration.monitor.drift.exclude == ("a", "b")
    assert (declaration.deploy.replicas.min, declaration.deploy.replicas.max) == (1, 3)


def test_all_problems_at_once_in_order_each_with_its_place() -> None:
    text = """model: m
modl: x
data:
  source: rows.csv
  targt: late
  clean:
    - clip_outliers: {columns: [distance], method: iqrr}
  split: {test: 1.5}
  split: {test: 0.1}
train:
  algorithm: random_forrest
  seed: many
gates:
  - roc_auc >= 0.6
  - roc_auk >= 0.6
deploy: {rollout: [canary 50% 1m, shadow 10m]}
"""
    with pytest.raises(Invalid) as caught:
        load_text(text, "m.yaml")
    found = [(p.line, p.column, p.path) for p in caught.value.problems]
    assert found == [
        (2, 1, "modl"),
        (5, 3, "data.targt"),
        (7, 52, "data.clean[0].clip_outliers.method"),
        (8, 17, "data.split.test"),
        (9, 3, "data.split"),
        (11, 14, "train.algorithm"),
        (12, 9, "train.seed"),
        (15, 5, "gates[1]"),
        (16, 35, "deploy.rollout[1]"),
    ]
    lines = str(caught.value).splitlines()
    assert lines[1] == "m.yaml:5:3: data.targt: 'targt' - did you mean 'target'?"
    assert lines[5] == "m.yaml:11:14: train.algorithm: 'random_forrest' - did you mean 'random_forest'?"
    assert lines[6] == "m.yaml:12:9: train.seed: found the text 'many', expected a whole number"


@pytest.mark.parametrize(
    ("sections", "path", "says"),
    [
        ({"model": "a/b"}, "model", "not a name"),
        ({"data": "{target: y}"}, "data.source", "missing"),
        ({"data": "[1]"}, "data", "found a list, expected a map"),
        ({"data": "{source: '', target: y}"}, "data.source", "empty"),
        ({"data": "{source: rows.csv}"}, "data.target", "missing"),
        ({"data": "{source: rows.csv, target: y, key: y}"}, "data.key", "target"),
        ({"data": "{source: rows.csv, target: y, time: y}"}, "data.time", "target"),
        ({"data": "{source: {url: x}, target: y}"}, "data.source", "query"),
        ({"data": "{source: {function: x}, target: y}"}, "data.source.function", "import path"),
        ({"data": "{source: a, target: y, split: {by: time}}"}, "data.split.by", "data.time"),
        ({"data": "{source: a, target: y, split: {test: 0}}"}, "data.split.test", "more than 0"),
        ({"data": "{source: a, target: y, split: {test: .nan}}"}, "data.split.test", "expected a number"),
        ({"data": "{source: a, target: y, clean: [scale]}"}, "data.clean[0]", "a step of features"),
        ({"data": "{source: a, target: y, clean: [{impute: , columns: a}]}"}, "data.clean[0]", "one step"),
        (
            {"data": "{source: a, target: y, clean: [{filter: 'a >'}]}"},
            "data.clean[0].filter.where",
            "found the end",
        ),
        ({"data": "{source: a, target: y, clean: [{cast: {a: itn}}]}"}, "data.clean[0].cast.columns.a", "'int'"),
        ({"features": "[{encode: {columns: carrier}}]"}, "features[0].encode.columns", "write [carrier]"),
        ({"features": "[{encode: [y]}]"}, "features[0].encode.columns[0]", "target"),
        ({"features": "[{bin: {columns: numeric, bins: 1}}]"}, "features[0].bin.bins", "at least 2"),
        ({"features": "[{bin: 7}]"}, "features[0].bin", "found the number 7"),
        ({"features": "[{tfidf: {columns: [t], ngrams: [2, 1]}}]"}, "features[0].tfidf.ngrams", "lengths"),
        ({"features": "[{tfidf: {columns: [t], ngrams: [2]}}]"}, "features[0].tfidf.ngrams", "list of 1"),
        (
            {"features": "[{date_parts: {columns: [t], parts: [mnth]}}]"},
            "features[0].date_parts.parts[0]",
            "'month'",
        ),
        ({"train": "{algorithm: 'a b.c'}"}, "train.algorithm", "import path"),
        ({"train": "{metric: roc}"}, "train.metric", "'roc_auc'"),
        ({"train": "{metric: rmse, algorithm: logistic_regression}"}, "train.metric", "regression"),
        ({"train": "{algorithm: ridge, task: classification}"}, "train.task", "regression"),
        ({"train": "{families: [ridge], algorithm: ridge}"}, "train.families", "auto"),
        ({"train": "{tune: {space: {a: {low: 2, high: 1}}}}"}, "train.tune.space.a", "not below"),
        ({"train": "{tune: {space: {a: {low: 0, high: 1, log: true}}}}"}, "train.tune.space.a.low", "above 0"),
        ({"train": "{tune: {space: {a: {low: 0.5, high: 1, int: true}}}}"}, "train.tune.space.a.low", "whole"),
        ({"train": "{tune: {space: {a: []}}}"}, "train.tune.space.a", "no choices"),
        ({"train": "{tune: {parallel: 0, space: {a: [1]}}}"}, "train.tune.parallel", "1"),
        ({"train": "{tune: {space: {a: 3}}}"}, "train.tune.space.a", "found the number 3"),
        ({"train": "{params: {a: 1}, tune: {space: {a: [1]}}}"}, "train.tune.space.a", "fixed"),
        ({"train": "{time_budget: 60}"}, "train.time_budget", "expected text"),
        ({"gates": "[rmse <= 3]", "train": "{task: classification}"}, "gates[0]", "regression"),
        ({"gates": "[error_rate < 1%]"}, "gates[0]", "deploy.abort"),
        ({"gates": "[f1 >= champion.accuracy]"}, "gates[0]", "same metric"),
        ({"gates": "roc_auc >= 0.6"}, "gates", "expected a list of texts"),
        ({"deploy": "{abort: [eror_rate > 1%]}"}, "deploy.abort[0]", "'error_rate'"),
        ({"deploy": "{rollout: [canary 5 1m]}"}, "deploy.rollout[0]", "percentage"),
        ({"deploy": "{replicas: {min: 3, max: 2}}"}, "deploy.replicas", "below"),
        ({"deploy": "{unknown_fields: refused}"}, "deploy.unknown_fields", "'refuse'"),
        ({"monitor": "{window: soon}"}, "monitor.window", "duration"),
        ({"monitor": "{drift: {false_alarms: often}}"}, "monitor.drift.false_alarms", "rate"),
        ({"monitor": "{log: {sample: 2}}"}, "monitor.log.sample", "at most 1"),
        ({"monitor": "{log: {sample: !!python/object:os.system 1}}"}, "monitor.log.sample", "not allowed"),
        ({"update": "{when: [drft]}"}, "update.when[0]", "'drift'"),
        ({"update": "{when: [cron 0 25 * * *]}"}, "update.when[0]", "hour"),
        ({"engine": "rai://"}, "engine", "'ray://'"),
        ({"engine": "dask"}, "engine", "lacks an address"),
        ({"engine": "ray://cluster:99999"}, "engine", "ray://host:port"),
        ({"engine": "local://0"}, "engine", "at least 1"),
        ({"resources": "{cpu: 1.5}"}, "resources.cpu", "whole number"),
        ({"resources": "{memory: much}"}, "resources.memory", "'4GB'"),
        ({"resources": "{gpu: -1}"}, "resources.gpu", "at least 0"),
    ],
)
def test_each_fault_is_named_with_its_place(sections: dict[str, str], path: str, says: str) -> None:
    found = problems_of(body(**sections))
    assert path in found, found
    assert says in found[path].message
    assert found[path].line > 0
    assert found[path].file == "m.yaml"


def test_a_misspelt_required_key_is_one_problem() -> None:
    assert list(problems_of("model: m\ndata: {sorce: a.csv, target: y}")) == ["data.sorce"]


def test_anomaly_detection_needs_no_target() -> None:
    assert load_text("model: m\ndata: {source: a.csv}\ntrain: {algorithm: isolation_forest}").data.target == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- 1\n", "found a list"),
        (b"just text", "found the text"),
        (b"model: m\ndata: {source: [}\n", ":2:17: not YAML"),
        (b"model: m\n\tdata: x\n", ":2:"),
        (b"model: caf\xe9\n", ":1:11: not UTF-8"),
        ("model: m\n".encode("utf-16"), "not UTF-8"),
        (b"model: m\n---\nmodel: n\n", ":2:1: a second document"),
        (b"model: \x01\n", "not YAML"),
        (b"model: *nothing\n", "refers to nothing"),
        (b"model: &a [*a]\n", "part of"),
        (b"? [a]\n: b\n", "a key must be text"),
        (b"[" * 100_000, "deep"),
        (b"a: " + b"{a: " * 5_000, "deep"),
        (b"x" * 1_000_001, "at most"),
    ],
)
def test_files_that_are_no_declaration(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "modelkeep.yaml"
    file.write_bytes(content)
    with pytest.raises(Invalid) as caught:
        load(tmp_path)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="modelkeep init"):
        load(tmp_path / "absent.yaml")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"\xef\xbb\xbf" + body().encode())
    assert load(tmp_path / "m.yaml").model == "m"


def test_yaml_bombs_are_refused_quickly() -> None:
    wide = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
    )
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 400))
    for text in (wide, deep):
        with pytest.raises(Invalid, match="aliases"):
            load_text(text)


def test_python_objects_are_checked_like_yaml() -> None:
    check(Declaration(model="m", data=minimal()))
    wrong = Declaration(
        model="m",
        data=minimal(split=Split(test=2.0), clean=(DropMissing(columns="late"),)),  # type: ignore[arg-type]
        train=Train(algorithm="random_forrest", params={"f": object()}),
        deploy=Deploy(rollout=("canry 5% 1m",)),
        monitor=Monitor(window="x"),
    )
    with pytest.raises(Invalid, match="a object cannot be written down"):
        check(wrong)
    with pytest.raises(Invalid) as caught:
        check(Declaration(model="m", data=wrong.data, deploy=wrong.deploy, monitor=wrong.monitor))
    assert {problem.path for problem in caught.value.problems} == {
        "data.split.test",
        "data.clean[0].drop_missing.columns",
        "deploy.rollout[0]",
        "monitor.window",
    }


def test_builtins_omit_defaults_whoever_wrote_them() -> None:
    spelt_out = load_text(body(train="{seed: 0, params: {}}", deploy="{replicas: {min: 1}}"))
    assert to_builtins(spelt_out) == {"model": "m", "data": {"source": "rows.csv", "target": "y"}}


@pytest.mark.parametrize("value", [10**400, "\ud800", b"x", {1, 2}])
def test_values_no_file_can_hold_are_refused(value: object) -> None:
    with pytest.raises(Invalid) as caught:
        check(Declaration(model="m", data=minimal(), train=Train(params={"a": [value]})))
    assert caught.value.problems[0].path == "train.params.a[0]"


def test_numbers_beyond_reason_are_refused() -> None:
    assert "out of range" in problems_of(body(train=f"{{seed: {'9' * 299}}}"))["train.seed"].message
    assert "text" in problems_of(body(train=f"{{seed: {'9' * 5000}}}"))["train.seed"].message
