"""Every search over HTTP, asked what its language allows and what it does not: 200 or 4xx, never 5xx."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 150
API = "/api/2.0/mlflow"

ENTITIES = (
    *("", "attributes.", "metrics.", "params.", "tags.", "dataset.", "datasets.", "metadata.", "trace.", "span."),
    *("request_metadata.", "feedback.", "expectation.", "assessment.", "issue.", "run.", "model.", "none."),
)
KEYS = (
    *("name", "status", "run_id", "run_name", "start_time", "end_time", "created", "creation_time", "user_id"),
    *("timestamp", "timestamp_ms", "execution_time_ms", "last_update_time", "last_updated_timestamp", "digest"),
    *("experiment_id", "model_id", "source_run_id", "model_type", "version_number", "source_path", "context"),
    *("type", "content", "text", "prompt", "artifact_uri", "lifecycle_stage", "attributes.model", "a", "none"),
    *("`b c`", '"b c"', "`é'`", "`a\0b`", "`%`", "``", "mlflow.source.name"),
)
OPERATORS = ("=", "!=", "<>", "<", "<=", ">", ">=", "LIKE", "ILIKE", "RLIKE", "IN", "NOT IN")
NULLS = ("IS NULL", "IS NOT NULL")
NUMBERS = ("0", "-1", ".5", "1e3", "9223372036854775807", "-9223372036854775809", "9" * 400, "9" * 5000, "1e999")
TEXTS = (
    *(
        "",
        "x",
        "%",
        "_",
        "\\",
        "%\\",
        "a\\_",
        "''",
        "é",
        "\0",
        "\U0001f600",
        "\ud83d",
        "(",
        "[",
        "(?",
        "*",
        "a{9999999}",
    ),
    *("ACTIVE", "FINISHED", "OK", "true", "1", "NaN", "x" * 3000),
)
FOUND = "0123456789abcdefghijklmnopqrstuvwxyzADEIKLNORST.`'\"_ =<>!()%,\\\0\t\né\u2028"

texts = st.one_of(st.sampled_from(TEXTS), st.text(st.sampled_from(FOUND), max_size=8))
quoted = st.one_of(texts.map(lambda text: f"'{text}'"), texts.map(lambda text: f'"{text}"'))
listed = st.lists(quoted, max_size=3).map(lambda given: f"({', '.join(given)})")
values = st.one_of(st.sampled_from(NUMBERS), quoted, listed)
keys = st.tuples(st.sampled_from(ENTITIES), st.sampled_from(KEYS)).map("".join)
compared = st.tuples(keys, st.sampled_from(OPERATORS), values).map(" ".join)
clauses = st.one_of(compared, st.tuples(keys, st.sampled_from(NULLS)).map(" ".join))
filters = st.one_of(
    st.lists(clauses, max_size=3).map(" AND ".join),
    st.text(st.sampled_from(FOUND), max_size=40),
    st.text(max_size=10),
)
orders = st.lists(
    st.one_of(st.tuples(keys, st.sampled_from(("", " ASC", " DESC", " up"))).map("".join), texts), max_size=3
)
tokens = st.one_of(st.just(""), st.integers(0, 99), texts)
"""A number stands for a token that the server itself gave, to this search or another one, whole or damaged."""


@pytest.fixture(scope="module")
def known(place: str) -> dict[str, Any]:
    """A server's address, what is there, and tokens of all searches."""
    with httpx.Client(base_url=place) as client:

        def ask(path: str, /, **content: Any) -> Any:
            answer = client.post(f"{API}/{path}", json=content)
            assert answer.status_code == 200, answer.text
            return answer.json()

        made = ask("experiments/create", name="searched", tags=[{"key": "a", "value": "x"}])["experiment_id"]
        for number in range(3):
            run = ask("runs/create", experiment_id=made, run_name=f"r{number}")["run"]["info"]["run_id"]
            pair = [{"key": "a", "value": "x"}]
            point = [{"key": "a", "value": number, "timestamp": 1, "step": 0}]
            ask("runs/log-batch", run_id=run, params=pair, tags=pair, metrics=point)
            ask("registered-models/create", name=f"m{number}", tags=pair)
            ask("model-versions/create", name="m0", source="s3://b/m", run_id=run, tags=pair)
            ask("logged-models", experiment_id=made, name="lm", params=pair, tags=pair)
            ask("datasets/create", name=f"d{number}", experiment_ids=[made])
            attributes = [{"key": "model", "value": {"stringValue": "x"}}]
            span = {"traceId": f"{number + 1:032x}", "spanId": "2" * 16, "name": "s", "attributes": attributes}
            spans = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
            client.post("/v1/traces", json=spans, headers={"x-mlflow-experiment-id": made}).raise_for_status()
        given = {"address": place, "experiment": made, "tokens": []}
        for search in SEARCHES.values():
            answer = search(client, given, "", [], 1, "")
            assert answer.status_code == 200, answer.text
            given["tokens"].append(answer.json()["next_page_token"])
    return given


def posted(path: str, **names: str) -> Callable[..., httpx.Response]:
    def search(
        client: httpx.Client, known: dict[str, Any], text: str, order: list[Any], most: int, token: str
    ) -> httpx.Response:
        within = known["experiment"]
        body = {
            names.get("filter", "filter"): text,
            "order_by": order if path != "logged-models/search" else [{"field_name": each} for each in order],
            "max_results": most,
            "page_token": token,
            "experiment_ids": [within],
            "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": within}}],
        }
        return client.post(f"{API}/{path}", content=json.dumps(body))  # which can send half of a surrogate pair

    return search


def asked(path: str) -> Callable[..., httpx.Response]:
    def search(
        client: httpx.Client, known: dict[str, Any], text: str, order: list[str], most: int, token: str
    ) -> httpx.Response:
        said = {"filter": text, "order_by": order, "max_results": most, "page_token": token}
        return client.get(f"{API}/{path}?{urlencode(said, doseq=True, errors='surrogatepass')}")

    return search


SEARCHES = {
    "runs": posted("runs/search"),
    "experiments": posted("experiments/search"),
    "registered models": asked("registered-models/search"),
    "versions": asked("model-versions/search"),
    "logged models": posted("logged-models/search"),
    "traces": posted("traces/search"),
    "evaluation datasets": posted("datasets/search", filter="filter_string"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_no_search_is_our_fault(known: dict[str, Any], name: str) -> None:
    codes: list[int] = []
    with httpx.Client(base_url=known["address"], timeout=60) as client:

        def ask(text: str, order: list[str], token: Any, most: int, cut: int) -> None:
            said = str(token)
            if isinstance(token, int):
                whole = known["tokens"][token % len(SEARCHES)]
                said = whole if token < 50 else f"{whole[: cut % len(whole)]}A{whole[cut % len(whole) + 1 :]}"
            answer = SEARCHES[name](client, known, text, order, most, said)
            assert answer.status_code in (200, 400), (text, order, said, answer.text)
            codes.append(answer.status_code)
            if answer.status_code == 400:
                assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE", answer.text
                assert answer.json()["message"]

        quick = settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        quick(given(filters, st.just([]), st.just(""), st.just(3), st.just(0))(ask))()
        quick(given(filters, orders, tokens, st.integers(-1, 3), st.integers(0, 300))(ask))()
        quick(given(st.just(""), orders, st.just(""), st.just(3), st.just(0))(ask))()
        quick(given(st.just(""), st.just([]), tokens, st.just(3), st.integers(0, 300))(ask))()
    assert min(codes.count(200), codes.count(400)) > EXAMPLES / 10  # neither everything nor nothing is refused


def test_versions_are_ordered_by_a_tag(place: str) -> None:
    with httpx.Client(base_url=f"{place}{API}") as client:
        client.post("/registered-models/create", json={"name": "tagged"}).raise_for_status()
        for number, value in enumerate(("b", "", "c", "a"), start=1):
            made = {
                "name": "tagged",
                "source": "s3://b/m",
                "tags": [{"key": "k", "value": value}] if value else [],
            }
            assert client.post("/model-versions/create", json=made).json()["model_version"]["version"] == str(
                number
            )
        for order, expected in (("tags.k", "4132"), ("tag.`k` DESC", "3142")):  # the one without comes last
            found, token = "", ""
            for _ in range(4):
                asked = {"filter": "name = 'tagged'", "order_by": order, "max_results": 1, "page_token": token}
                page = client.get("/model-versions/search", params=asked).json()
                found += "".join(each["version"] for each in page["model_versions"])
                token = page.get("next_page_token", "")
            assert (found, token) == (expected, "")
