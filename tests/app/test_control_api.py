"""The control server over real HTTP."""

from __future__ import annotations

import io
import json

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Up
from modelkeep.registry import captures
from small import until

API = "/api/modelkeep"
PARQUET = {"content-type": "application/vnd.apache.parquet"}


def labels(up: Up, *names: str) -> dict[str, str]:
    with up.project.opened() as keep, keep.db.read() as conn:
        return captures.labels_for(conn, names)


def parquet(**columns: list[object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_what_it_tells(up: Up) -> None:
    status = up.get(f"{API}/status").json()
    assert status["serving"] == up.serving
    assert status["jobs"] == 0
    until(lambda: up.get(f"{API}/status").json()["loop"]["ticks"] > 2)
    assert up.get(f"{API}/status").json()["loop"]["fault"] == ""
    known = up.get(f"{API}/models").json()["late"]
    assert [version["version"] for version in known] == [1, 2]
    one = up.get(f"{API}/models/late/versions/champion").json()
    assert one["lineage"]["params"]["C"] == 0.5
    said = up.get(f"{API}/models/late/versions/1/evaluation").json()
    assert said["metrics"]["roc_auc"] > 0.6
    served = up.get(f"{API}/endpoints").json()
    assert [route["version"] for route in served[0]["routes"]] == [2]
    told = up.get(f"{API}/events").json()["events"]
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert len(up.get(f"{API}/events?after=1&limit=2").json()["events"]) == 2
    assert up.get(f"{API}/events/verify").json() == {"whole": True, "faults": []}
    assert up.get(f"{API}/snapshots").json()["late"][0]["rows"] == 600
    assert up.get(f"{API}/jobs").json() == []
    for path in ("windows", "findings"):
        assert up.get(f"{API}/endpoints/late/{path}").status_code == 200
    assert up.get("/health").text == "OK"
    assert up.get("/").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/late/versions/9", 404),
        ("/models/no/versions/1", 404),
        ("/endpoints/no/windows", 404),
        ("/nothing", 404),
        ("/events?limit=many", 400),
        ("/events?after=x", 400),
    ],
)
def test_what_it_does_not_know(up: Up, path: str, status: int) -> None:
    answer = up.get(f"{API}{path}")
    assert answer.status_code == status
    assert answer.json()["message"]
    assert "Traceback" not in answer.text


def test_a_method_it_does_not_offer(up: Up) -> None:
    answer = up.client.delete(f"{up.control}{API}/models")
    assert answer.status_code == 405
    assert "DELETE" in answer.json()["message"]


def test_labels_one_many_and_parquet(up: Up) -> None:
    assert up.post(f"{API}/labels", json={"prediction_id": "a", "label": 1}).json() == {"taken": 1}
    many = [{"prediction_id": "b", "label": "spam"}, {"prediction_id": "c", "label": 2.5, "time": 7.0}]
    assert up.post(f"{API}/labels", json={"labels": many}).json() == {"taken": 2}
    body = parquet(prediction_id=["d", "e"], label=[True, False], time=[1.0, 2.0])
    assert up.post(f"{API}/labels", content=body, headers=PARQUET).json() == {"taken": 2}
    assert labels(up, "a", "b", "c", "d", "e") == {"a": "1", "b": '"spam"', "c": "2.5", "d": "true", "e": "false"}
    up.post(f"{API}/labels", json={"prediction_id": "a", "label": 0})
    assert labels(up, "a") == {"a": "0"}
    assert up.post(f"{API}/labels", json={"labels": []}).json() == {"taken": 0}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"prediction_id": "q"}', "label"),
        ('{"label": 1}', "prediction_id"),
        ('{"prediction_id": "q", "label": [1]}', "label"),
        ('{"prediction_id": 5, "label": 1}', "prediction_id"),
        ('{"labels": [{"prediction_id": "q", "label": 1}, {"prediction_id": "", "label": 1}]}', "labels[1]"),
        ('{"labels": [{"prediction_id": "q", "label": 1}, {"label": 1}]}', "labels[1]"),
        ('{"labels": [{"prediction_id": "q", "label": null}]}', "labels[0].label"),
        ('{"labels": [], "label": 1}', "labels"),
        ('{"prediction_id": "q", "label": 1, "extra": 1}', ""),
        ('{"prediction_id": "q", "label": 1, "time": "soon"}', "time"),
        ("{", ""),
        ("", ""),
        ("\x00", ""),
        ("[" * 100_000, ""),
    ],
)
def test_bad_labels_are_named_and_none_is_kept(up: Up, body: str, path: str) -> None:
    answer = up.post(f"{API}/labels", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["problems"][0]["path"].startswith(path)
    assert labels(up, "q") == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"PAR1 nothing", "not a Parquet file"),
        (parquet(prediction_id=["q"]), "'label'"),
        (parquet(prediction_id=["q", None], label=[1, 2]), "rows[1]"),
        (parquet(prediction_id=["q"], label=[[1]]), "rows[0]"),
        (parquet(prediction_id=["q"], label=[1], time=["soon"]), "time"),
        (parquet(prediction_id=["q"], label=[1], time=[None]), "q"),
        (parquet(prediction_id=["q"], label=[float("nan")]), "rows[0]"),
    ],
)
def test_bad_parquet_labels_are_named(up: Up, body: bytes, said: str) -> None:
    answer = up.post(f"{API}/labels", content=body, headers=PARQUET)
    if said == "q":  # a missing time is the time it was posted
        assert answer.json() == {"taken": 1}
        return
    assert answer.status_code == 400, answer.text
    assert said in answer.text
    assert labels(up, "q") in ({}, {"q": "1"})


def test_rollback_and_back(up: Up) -> None:
    answer = up.post(f"{API}/models/late/rollback", json={"because": "a test"})
    assert answer.json()["version"] == 1
    until(lambda: up.predict().json()["model_version"] == "1")
    assert up.post(f"{API}/models/late/rollback", json={"to": 2}).json()["version"] == 2
    until(lambda: up.predict().json()["model_version"] == "2")
    for body, status in (({"to": 9}, 404), ({"to": "x"}, 400), ({"until": 1}, 400)):
        assert up.post(f"{API}/models/late/rollback", json=body).status_code == status
    assert up.post(f"{API}/models/no/rollback", json={}).status_code == 404
    last = up.get(f"{API}/events?kind=version.rolled_back").json()["events"]
    assert [event["subject"] for event in last] == ["late@1", "late@2"]


def test_the_openapi_document_is_whole(up: Up) -> None:
    document = up.get(f"{API}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] and document["info"]["version"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#')[1:]}:
        found = document
        for step in reference.strip("/").split("/"):
            found = found[step]
    names = []
    for path, item in document["paths"].items():
        for operation in item.values():
            names.append(operation["operationId"])
            (content,) = operation["responses"]["200"]["content"].values()
            assert content["schema"] is not None
            given = [
                parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"
            ]
            assert sorted(given) == sorted(part[1:-1] for part in path.split("/") if part.startswith("{"))
            assert all(
                parameter["required"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"
            )
    assert len(names) == len(set(names)) >= 100
    for path, item in document["paths"].items():
        if path.startswith(API) and "get" in item and "{" not in path:
            assert up.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:5000"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "127.0.0.1.evil.example"},
        {"origin": "http://127.0.0.1.evil.example"},
    ],
)
def test_requests_that_a_browser_was_tricked_into_are_refused(up: Up, headers: dict[str, str]) -> None:
    for method, path in (("GET", f"{API}/models"), ("POST", f"{API}/labels"), ("GET", "/")):
        body = {"prediction_id": "evil", "label": 1} if method == "POST" else None
        answer = up.client.request(method, f"{up.control}{path}", headers=headers, json=body)
        assert answer.status_code == 403, (method, path)
    assert labels(up, "evil") == {}


def test_local_names_and_origins_are_answered(up: Up) -> None:
    port = httpx.URL(up.control).port
    for headers in (
        {"host": f"localhost:{port}"},
        {"origin": f"http://localhost:{port}"},
        {"host": f"[::1]:{port}"},
    ):
        assert up.client.get(f"{up.control}{API}/models", headers=headers).status_code == 200


def test_a_category_never_seen(up: Up) -> None:
    answer = up.predict(place="nowhere")
    assert answer.status_code == 400
    problem = answer.json()["problems"][0]
    assert problem["path"] == "inputs.place[0]"
    assert "nowhere" in problem["message"]
    assert up.predict().status_code == 200
