"""Searches of runs and experiments: the filter language, orders, pages that stay correct."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.search_utils import SearchUtils

from modelkeep.core.errors import Invalid
from modelkeep.registry import experiments, runs, search
from modelkeep.store.database import Database

METRICS = (("auc", 0.5), ("auc", 0.9), ("auc", math.nan), (None, 0.0), ("auc", math.inf), ("auc", 0.7))


@pytest.fixture
def filled(client: Any) -> tuple[Any, str]:
    """Six runs, r0 to r5, begun in that order."""
    made = client.create_experiment("searched")
    for at, (key, value) in enumerate(METRICS):
        metrics = [] if key is None else [Metric(key, value, 1, 0), Metric("val/loss 2", at, 1, 0)]
        params = [Param("depth", str(at)), Param("kind", "Tree" if at % 2 else "tree'd")]
        tags = [RunTag("team one", "A" if at < 3 else "b"), *([RunTag("rare", "yes")] if at == 4 else [])]
        run = client.create_run(made, start_time=1000 + at, run_name=f"r{at}")
        client.log_batch(run.info.run_id, metrics, params, tags)
        if at % 2:
            client.set_terminated(run.info.run_id, end_time=2000 + at)
    return client, made


def names(found: Any) -> str:
    return "".join(run.info.run_name[1] for run in found)


FILTERS = (
    ("", "543210"),
    ("metrics.auc > 0.5", "541"),
    ("metric.auc >= .5 and metrics.auc < 1e3", "510"),
    ("metrics.auc != 0.5", "5421"),  # NaN is no number
    ("metrics.auc != 0.5 AND params.depth = '2'", "2"),
    ("metrics.auc != 0.5 AND metrics.auc > 0", "541"),
    ("metrics.auc = 0", ""),
    ('metrics.`val/loss 2` <= 2 AND metrics."val/loss 2" > 0', "21"),
    ("metrics.val/loss > -1", ""),
    ("params.depth = '3'", "3"),
    ("param.depth != '3'", "54210"),
    ("parameters.kind LIKE 'T%'", "531"),
    ("params.kind ILIKE 'TREE%'", "543210"),
    ("params.kind = 'tree''d'", "420"),
    ("params.kind LIKE '_ree'", "531"),
    ("params.kind LIKE '*ree'", ""),
    ("tags.`team one` = 'A'", "210"),
    ('tag."team one" != "A"', "543"),
    ("tags.rare IS NULL", "53210"),
    ("tags.rare IS NOT NULL", "4"),
    ("params.depth is not null AND tags.rare = 'yes'", "4"),
    ("status = 'FINISHED'", "531"),
    ("attributes.status != 'FINISHED' AND attr.run_name LIKE 'r%'", "420"),
    ("attribute.start_time > 1003", "54"),
    ("created <= 1001", "10"),
    ("run.end_time >= 2003", "53"),
    ("attributes.`Run name` = 'r2'", "2"),
    ("user_id = 'nobody'", ""),
    ("artifact_uri LIKE 'mlflow-artifacts:/%/artifacts'", "543210"),
)


def test_filters_find_what_they_say(filled: tuple[Any, str]) -> None:
    client, made = filled
    assert {text: names(client.search_runs([made], text)) for text, _ in FILTERS} == dict(FILTERS)


def test_run_ids_may_be_listed(filled: tuple[Any, str]) -> None:
    client, made = filled
    ids = [run.info.run_id for run in client.search_runs([made])]
    assert names(client.search_runs([made], f"run_id IN ('{ids[0]}', '{ids[3]}')")) == "52"
    assert names(client.search_runs([made], f"attributes.run_id NOT IN ('{ids[0]}', '{ids[3]}')")) == "4310"


ORDERS = (
    (["metrics.auc DESC"], "415023"),  # NaN after the numbers, then the run without, either way
    (["metrics.auc ASC"], "051423"),
    (["metrics.auc"], "051423"),
    (["params.kind", "metrics.auc DESC"], "153402"),
    (["tags.`team one` DESC", "start_time ASC"], "345012"),
    (["tags.rare", "params.depth asc"], "401235"),
    (["attributes.end_time DESC"], "531420"),
    (["start_time"], "012345"),
    (["status", "run_name DESC"], "531420"),
)


def test_orders_put_missing_values_last(filled: tuple[Any, str]) -> None:
    for order, expected in ORDERS:
        ordered(*filled, order, expected)


def ordered(client: Any, made: str, order: list[str], expected: str) -> None:
    assert names(client.search_runs([made], order_by=order)) == expected
    found, token = [], None
    for _ in range(6):  # page by page it is the same
        page = client.search_runs([made], order_by=order, max_results=1, page_token=token)
        found += page
        token = page.token
    assert (names(found), token) == (expected, None)
    assert names(client.search_runs([made], "tags.`team one` = 'A'", order_by=order)) == "".join(
        each for each in expected if each in "012"
    )


def test_pages_stay_correct_while_runs_are_added(client: Any) -> None:
    made = client.create_experiment("growing")
    chance = random.Random(1)
    for at in range(60):
        run = client.create_run(made, start_time=chance.randrange(20), run_name=f"{at}").info.run_id
        client.log_metric(run, "m", chance.randrange(5))
    for order in ([], ["metrics.m DESC"], ["metrics.m"], ["run_name"]):
        before = {run.info.run_id for run in client.search_runs([made])}
        seen: list[str] = []
        token = None
        while True:
            page = client.search_runs([made], order_by=order, max_results=7, page_token=token)
            seen += [run.info.run_id for run in page]
            token = page.token
            if not token:
                break
            new = client.create_run(made, start_time=chance.randrange(20)).info.run_id
            client.log_metric(new, "m", chance.randrange(5))
        assert len(seen) == len(set(seen))
        assert before <= set(seen)


def test_several_experiments_are_searched_together(filled: tuple[Any, str]) -> None:
    client, made = filled
    other = client.create_experiment("other")
    for at in (6, 7):
        run = client.create_run(other, start_time=1000 + at, run_name=f"r{at}").info.run_id
        client.log_metric(run, "auc", at / 10)
    assert names(client.search_runs([made, other])) == "76543210"
    assert names(client.search_runs([made, other], order_by=["metrics.auc"])) == "06751423"
    assert names(client.search_runs([made, other], "metrics.auc > 0.65")) == "7541"
    assert client.search_runs([], "") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics.auc > 'high'", "numeric value type"),
        ("params.depth = 3", "quoted string value"),
        ("params.depth > '3'", "Invalid comparator"),
        ("metrics.auc LIKE '3'", "Invalid comparator"),
        ("metrics.auc IS NULL", "Invalid comparator"),
        ("status IN ('FINISHED')", "list"),
        ("colour = 'red'", "Invalid attribute key"),
        ("things.a = 'b'", "Invalid entity type"),
        ("dataset.size = 'b'", "Invalid dataset key"),
        ("metrics.auc > 1 OR metrics.auc < 0", "expected AND"),
        ("metrics.auc > 1 AND", "AND"),
        ("metrics.auc > 1; DROP TABLE runs", "Invalid clause"),
        ("metrics.auc", "operator"),
        ("'", "key"),
        ("start_time = 'x'", "numeric"),
        ("run_id IN ()", "quoted string"),
        ("run_id IN ('a'", "end of the list"),
    ],
)
def test_filters_that_make_no_sense_say_why(light: str, text: str, words: str) -> None:
    answer = httpx.post(f"{light}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["0"], "filter": text})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"order_by": ["metrics.a sideways"]},
        {"order_by": ["metrics.a", "metrics.a DESC"]},
        {"order_by": ["colour"]},
        {"order_by": ["dataset.name"]},
        {"page_token": "never"},
        {"page_token": "WyJhIiwxXQ=="},
        {"max_results": 0},
        {"max_results": 50_001},
        {"experiment_ids": ["x"]},
        {"run_view_type": "SOME"},
    ],
)
def test_orders_and_pages_that_make_no_sense_are_refused(light: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{light}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["0"], **body})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_experiments_are_searched(client: Any) -> None:
    for at, team in enumerate(("x", "y", "x")):
        client.create_experiment(f"Exp{at}", tags={"team": team})

    def found(text: str = "", order: list[str] | None = None) -> list[str]:
        return [each.name for each in client.search_experiments(filter_string=text, order_by=order)]

    assert set(found()) == {"Default", "Exp0", "Exp1", "Exp2"}
    assert found("name LIKE 'Exp%'", ["name DESC"]) == ["Exp2", "Exp1", "Exp0"]
    assert found("name ILIKE 'exp%' AND tags.team = 'x'", ["name"]) == ["Exp0", "Exp2"]
    assert found("tags.team IS NULL") == ["Default"]
    assert found("attribute.creation_time > 0 AND name != 'Exp1'", ["experiment_id ASC"])[0] == "Default"
    known = client.get_experiment_by_name("Exp1").experiment_id
    assert found(f"experiment_id IN ('{known}')") == ["Exp1"]
    assert found(f"experiment_id = '{known}'") == ["Exp1"]
    first = client.search_experiments(max_results=3, order_by=["name"])
    rest = client.search_experiments(max_results=3, order_by=["name"], page_token=first.token)
    assert [each.name for each in (*first, *rest)] == ["Default", "Exp0", "Exp1", "Exp2"]


KEYS = st.sampled_from(["a", "b b", "c/d"])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, -1.5])
TEXTS = st.sampled_from(["", "x", "X%", "it's", "y_", "%"])
CLAUSES: dict[str, Callable[[], st.SearchStrategy[str]]] = {
    "metric": lambda: st.builds(
        "metrics.`{}` {} {}".format, KEYS, st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), NUMBERS
    ),
    "param": lambda: st.builds(
        lambda key, op, text: f"params.`{key}` {op} '{text.replace(chr(39), '')}'",
        KEYS,
        st.sampled_from(["=", "!=", "LIKE", "ILIKE"]),
        TEXTS,
    ),
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A database of 40 random runs, and the same as MLflow's own objects."""
    from mlflow.entities import LifecycleStage, Run, RunData, RunInfo

    db = Database.open(f"sqlite:///{tmp_path_factory.mktemp('sample')}/m.db")
    chance = random.Random(7)
    known = []
    db.write(lambda conn: experiments.ensure_default(conn, 1))
    for at in range(40):
        metrics = {
            key: chance.choice([-1.5, 0.5, 1, 2, -3, math.nan]) for key in ("a", "b b") if chance.random() < 0.7
        }
        params = {key: chance.choice(["", "x", "Xy", "ya", "%"]) for key in ("a", "c/d") if chance.random() < 0.7}

        def add(conn: Any, at: int = at, metrics: Any = metrics, params: Any = params) -> str:
            made = runs.create(conn, 0, f"r{at}", at / 1000)
            runs.log(conn, made, [(key, value, 1, 0) for key, value in metrics.items()], params)
            return made

        run_id = db.write(add)
        info = RunInfo(run_id, "0", "", "RUNNING", at, None, LifecycleStage.ACTIVE, run_name=f"r{at}")
        data = RunData(
            [Metric(*pair, 1, 0) for pair in metrics.items()], [Param(*pair) for pair in params.items()]
        )
        known.append(Run(info, data))
    yield db, known
    db.close()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(*(make() for make in CLAUSES.values())), max_size=3).map(" AND ".join))
def test_filters_find_what_mlflow_itself_finds(sample: Any, text: str) -> None:
    db, known = sample
    with db.read() as conn:
        rows, _ = search.runs(conn, [0], text)
    assert {row.run_id for row in rows} == {run.info.run_id for run in SearchUtils.filter(known, text)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["metrics.a", "metrics.`b b`", "params.a", "params.`c/d`"]), st.booleans()),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: pair[0],
    )
)
def test_orders_are_those_of_mlflow_itself(sample: Any, keys: list[tuple[str, bool]]) -> None:
    db, known = sample
    order = [f"{key} {'ASC' if up else 'DESC'}" for key, up in keys]
    found: list[str] = []
    token = ""
    with db.read() as conn:
        while True:
            rows, token = search.runs(conn, [0], orders=order, limit=7, token=token)
            found += [row.run_id for row in rows]
            if not token:
                break
    assert found == [run.info.run_id for run in SearchUtils.sort(known, order)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("metricsparamstags.`'\"a1 =<>!()%,ANDIKELIS\x00é")))
def test_no_filter_breaks_the_parser(sample: Any, text: str) -> None:
    db, _ = sample
    with db.read() as conn:
        try:
            search.runs(conn, [0], text)
        except Invalid as error:
            assert str(error)
