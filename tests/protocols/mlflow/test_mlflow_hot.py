"""The two entrances to MLflow's operations answer alike, whatever way the bytes come."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving_mlflow import answering, home

from modelkeep.lifecycle.keep import Keep
from modelkeep.store.blobs import open_blobs

LOG = "/api/2.0/mlflow/runs/log-metric"


class Raw:
    """One connection, byte by byte."""

    def __init__(self, address: str) -> None:
        where = urlsplit(address)
        self.host = where.netloc
        self.socket = socket.create_connection((where.hostname, where.port), 10)
        self.kept = b""

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def request(self, path: str, content: Any, *, host: str = "", extra: str = "", method: str = "POST") -> bytes:
        body = b"" if content is None else json.dumps(content).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {host or self.host}\r\n{extra}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def answer(self) -> tuple[int, Any]:
        while True:
            head, _, rest = self.kept.partition(b"\r\n\r\n")
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(lines.get(b"content-length", 0))
            if b"\r\n\r\n" in self.kept and len(rest) >= length:
                self.kept = rest[length:]
                status = int(head.split(b" ", 2)[1])
                if status == 100:
                    continue
                return status, json.loads(rest[:length]) if length else None
            data = self.socket.recv(65536)
            assert data, f"closed after {self.kept!r}"
            self.kept += data


@pytest.fixture
def raw(light: str) -> Iterator[Raw]:
    found = Raw(light)
    yield found
    found.socket.close()


@pytest.fixture
def run(light: str) -> str:
    made = httpx.post(f"{light}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).json()
    return str(made["run"]["info"]["run_id"])


def point(run: str, step: int, key: str = "m") -> dict[str, Any]:
    return {"run_id": run, "key": key, "value": step / 2, "timestamp": 5, "step": step}


def steps(address: str, run: str, key: str = "m") -> list[int]:
    asked = {"run_id": run, "metric_key": key}
    found = httpx.get(f"{address}/api/2.0/mlflow/metrics/get-history", params=asked).json()
    return [each["step"] for each in found["metrics"]]


def test_both_entrances_give_the_same_answers(light: str, raw: Raw, run: str) -> None:
    asked: list[tuple[str, str, Any]] = [
        ("GET", f"/api/2.0/mlflow/runs/get?run_id={run}", None),
        ("GET", "/api/2.0/mlflow/runs/get?run_id=none", None),
        ("GET", "/api/3.0/mlflow/server-info", None),
        ("GET", "/api/2.0/mlflow/logged-models/m-none", None),
        ("POST", "/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": ["0"], "filter": "metrics. > 1"}),
        ("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]}),
        ("POST", LOG, point("none", 1)),
        ("POST", LOG, {**point(run, 1), "value": "NaN"}),
        ("POST", LOG, {**point(run, 1), "timestamp": -1}),
        ("POST", LOG, "not an object"),
        ("POST", "/api/2.0/mlflow/nothing", {}),
        ("DELETE", "/api/2.0/mlflow/runs/get", {}),
    ]
    for method, path, content in asked:
        raw.send(raw.request(path, content, method=method))
        hot = raw.answer()
        raw.send(raw.request(path, content, method=method, extra="Expect: 100-continue\r\n"))  # left to ASGI
        assert raw.answer() == hot, path


def test_requests_in_one_piece_in_many_and_in_a_row_are_answered_in_order(light: str, raw: Raw, run: str) -> None:
    raw.send(b"".join(raw.request(LOG, point(run, step)) for step in range(20)))
    assert [raw.answer() for _ in range(20)] == [(200, {})] * 20
    whole = raw.request(LOG, point(run, 20))
    raw.send(*(whole[at : at + 7] for at in range(0, len(whole), 7)))
    assert raw.answer() == (200, {})
    body = json.dumps(point(run, 21)).encode()
    head = f"POST {LOG} HTTP/1.1\r\nHost: {raw.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    raw.send(head, b"5\r\n", body[:5], b"\r\n", b"%x\r\n" % (len(body) - 5), body[5:], b"\r\n0\r\n\r\n")
    assert raw.answer() == (200, {})
    assert steps(light, run) == list(range(22))


@pytest.mark.parametrize("how", [{"host": "evil.example"}, {"extra": "Origin: http://evil.example\r\n"}])
def test_a_foreign_host_or_origin_is_refused_however_often_it_asks(
    light: str, run: str, how: dict[str, str]
) -> None:
    for path, content in ((LOG, point(run, 1)), ("/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]})):
        raw = Raw(light)
        for _ in range(3):
            raw.send(raw.request(path, content, **how))
            status, said = raw.answer()
            assert status == 403
            assert said["error_code"] == "PERMISSION_DENIED"
        raw.send(raw.request(path, content))
        assert raw.answer()[0] == 200
        raw.socket.close()
    assert steps(light, run) == [1]


def test_many_clients_at_once_and_the_wrong_among_them_fail_alone(address: str) -> None:
    made = httpx.post(f"{address}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).json()
    run = made["run"]["info"]["run_id"]
    param = "/api/2.0/mlflow/runs/log-parameter"

    async def drive() -> list[int]:
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            asked = [http.post(LOG, json=point("none" if at % 5 == 0 else run, at)) for at in range(100)]
            asked += [http.post(param, json={"run_id": run, "key": "k", "value": str(at)}) for at in range(10)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    codes = asyncio.run(drive())
    assert codes[:100] == [404 if at % 5 == 0 else 200 for at in range(100)]
    assert sorted(codes[100:]) == [200] + [400] * 9  # one value came first
    assert steps(address, run) == [at for at in range(100) if at % 5]


def test_versions_made_together_are_numbered_in_order_and_the_wrong_among_them_fail_alone(address: str) -> None:
    api = f"{address}/api/2.0/mlflow"
    for name in ("one", "two"):
        httpx.post(f"{api}/registered-models/create", json={"name": name}).raise_for_status()

    def asked(at: int) -> dict[str, Any]:
        name = "nobody" if at % 5 == 0 else ("one", "two")[at % 2]
        source = "s3://b/../m" if at % 7 == 0 else f"s3://b/{at}"
        return {"name": name, "source": source, "tags": [{"key": "at", "value": str(at)}]}

    async def drive() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as http:
            path = f"{api}/model-versions/create"
            return await asyncio.gather(*(http.post(path, json=asked(at)) for at in range(60)))

    answers = asyncio.run(drive())
    wanted = [404 if at % 5 == 0 else 400 if at % 7 == 0 else 200 for at in range(60)]
    assert [answer.status_code for answer in answers] == wanted
    for name in ("one", "two"):
        query = {"filter": f"name = '{name}'"}
        kept = httpx.get(f"{api}/model-versions/search", params=query).json()["model_versions"]
        made = [answer.json()["model_version"] for answer in answers if answer.status_code == 200]
        mine = [version for version in made if version["name"] == name]
        assert sorted(int(version["version"]) for version in mine) == list(range(1, len(mine) + 1))
        assert sorted(mine, key=itemgetter("source")) == sorted(kept, key=itemgetter("source"))
        assert all(version["tags"][0]["value"] == version["source"].rpartition("/")[2] for version in mine)


def test_a_client_that_goes_away_harms_no_other(light: str, run: str) -> None:
    for step in range(30):
        gone = Raw(light)
        gone.send(gone.request(LOG, point(run, step, "gone")))
        gone.socket.close()
    raw = Raw(light)
    raw.send(raw.request(LOG, point(run, 1)))
    assert raw.answer() == (200, {})
    raw.socket.close()
    assert set(steps(light, run, "gone")) <= set(range(30))


def test_a_batch_says_which_metric_is_wrong(light: str, raw: Raw, run: str) -> None:
    path = "/api/2.0/mlflow/runs/log-batch"
    for fault, words in (
        ({"timestamp": -5}, "metrics[3].timestamp"),
        ({"step": 2**63}, "metrics[3].step"),
        ({"key": "/a"}, "metrics[3].name"),
        ({"timestamp": 2**63}, "metrics[3].timestamp"),
    ):
        metrics = [{"key": "m", "value": 1, "timestamp": 1, "step": at} for at in range(6)]
        metrics[3].update(fault)  # type: ignore[arg-type]
        raw.send(raw.request(path, {"run_id": run, "metrics": metrics}))
        status, said = raw.answer()
        assert (status, said["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert words in said["message"]
    assert steps(light, run) == []


def test_values_no_database_can_hold_are_told_and_harm_no_other(address: str) -> None:
    made = httpx.post(f"{address}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).json()
    run = made["run"]["info"]["run_id"]
    post = f"{address}/api/2.0/mlflow/"
    for path, fault in (
        ("runs/set-tag", {"key": "k", "value": "\ud800"}),
        ("runs/set-tag", {"key": "k", "value": "a\x00b"}),
        ("runs/log-parameter", {"key": "k\ud800", "value": "x"}),
        ("runs/update", {"run_name": "\udfff"}),
        ("runs/update", {"end_time": 2**70}),
        ("runs/log-metric", {"key": "k", "value": 10**400, "timestamp": 1}),
        ("runs/log-metric", {"key": "k", "value": 1, "timestamp": 1, "step": -(2**70)}),
    ):
        answer = httpx.post(post + path, content=json.dumps({"run_id": run, **fault}))
        assert answer.status_code in (200, 400), (path, fault, answer.text)
        assert httpx.get(post + f"runs/get?run_id={run}").status_code == 200
    for path, query in (
        ("runs/get", "run_id=a%00b"),
        ("experiments/get-by-name", "experiment_name=a%00b"),
        ("metrics/get-history", f"run_id={run}&metric_key=%00"),
    ):
        assert httpx.get(f"{post}{path}?{query}").status_code in (200, 400, 404), path
    made = httpx.post(post + "experiments/create", content=json.dumps({"name": "\ud800"}))
    assert made.status_code == 400
    found = httpx.post(post + "runs/search", json={"experiment_ids": ["0"], "filter": "tags.a = '\x00'"})
    assert found.status_code in (200, 400)


def test_health_answers_before_the_pages_are_loaded_and_they_come_when_asked(address: str) -> None:
    raw = Raw(address)
    raw.send(f"GET /health HTTP/1.1\r\nHost: {raw.host}\r\n\r\n".encode())
    assert raw.socket.recv(1000).endswith(b"\r\n\r\nOK")
    raw.socket.close()
    answers: list[int] = []
    asking = [
        threading.Thread(
            target=lambda: answers.append(httpx.get(f"{address}/api/modelkeep/openapi.json").status_code)
        )
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [200] * 4


def test_small_files_come_back_before_asgi_and_large_ones_through_it(address: str) -> None:
    root = f"{address}/api/2.0"
    run = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
    files = f"{root}/mlflow-artifacts/artifacts/0/{run}/artifacts"
    sizes = [0, 1, 64 * 1024, 64 * 1024 + 1, 1 << 20, (1 << 20) + 1, 3 << 20]
    bodies = {f"ü {size}.bin": os.urandom(size) for size in sizes}
    with httpx.Client() as http:
        for name, body in bodies.items():
            assert http.put(f"{files}/{name}", content=body).status_code == 200
        for name, body in bodies.items():
            answer = http.get(f"{files}/{name}")
            assert answer.content == body, name
            assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''%C3%BC%20")
            assert http.get(f"{files}/{name}", headers={"range": "bytes=0-0"}).content == body[:1]
        for wrong in (
            http.get(f"{files}/none"),
            http.get(f"{files}/..%2fx"),
            http.put(f"{files}/%ff", content=b"x"),
            http.put(f"{files}/ü 1.bin/below", content=b"x"),
            http.put(f"{files}", content=b"x"),
            http.put(f"{root}/mlflow-artifacts/artifacts/0/none/artifacts/x", content=b"x"),
        ):
            assert 400 <= wrong.status_code < 500, (wrong.request.url, wrong.text)
        assert http.put(f"{files}/folder/x", content=b"x").status_code == 200
        assert http.put(f"{files}/folder", content=b"x").status_code == 400
        assert http.put(f"{files}/folder0", content=b"x").status_code == 200


def test_small_files_that_come_together_keep_to_their_own(address: str) -> None:
    """Of two runs, in folders, one of them called as the root is, missing ones and wrong ones: all at once."""
    root = f"{address}/api/2.0"
    files = []
    for _ in range(2):
        run = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
        files.append(f"{root}/mlflow-artifacts/artifacts/0/{run}/artifacts")
    names = ("a", "b", "f/a", "f/artifacts/a", "f/artifacts/artifacts", "g/artifacts")
    urls = [f"{base}/{name}" for name in names for base in files]

    async def all_of(method: str, asked: list[str]) -> list[httpx.Response]:
        async with httpx.AsyncClient() as http:
            bodies = [{"content": url.encode()} if method == "PUT" else {} for url in asked]
            pairs = zip(asked, bodies, strict=True)
            return await asyncio.gather(*(http.request(method, url, **body) for url, body in pairs))

    assert {answer.status_code for answer in asyncio.run(all_of("PUT", urls))} == {200}
    missing = [f"{base}/{name}" for name in ("c", "f/b", "f", "artifacts") for base in files]
    answers = asyncio.run(all_of("GET", [*urls, *missing, f"{files[0]}x/a"]))
    assert [answer.content.decode() for answer in answers[: len(urls)]] == urls
    assert [answer.status_code for answer in answers[len(urls) :]] == [404] * (len(missing) + 1)


def test_a_large_file_asked_for_among_others_in_one_piece_closes_or_answers(light: str) -> None:
    """Who asks again before the answer is there gets whole answers in order, or a closed connection."""
    root = f"{light}/api/2.0"
    run = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
    files = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts"
    large = os.urandom(2 << 20)
    assert httpx.put(f"{light}{files}/large", content=large).status_code == 200
    raw = Raw(light)
    raw.send(f"GET {files}/large HTTP/1.1\r\nHost: {raw.host}\r\n\r\n".encode() * 3)
    said = b""
    while part := raw.socket.recv(1 << 20):
        said += part
        if said.count(large) == 3:
            break
    raw.socket.close()
    assert said.count(b"HTTP/1.1 200 OK") == said.count(large)
    assert httpx.get(f"{light}{files}/large").content == large


def test_nobody_is_left_waiting_and_object_stores_serve_many(sqlite_url: str, s3: str, tmp_path: Path) -> None:
    with home(sqlite_url, tmp_path) as folder:
        stored = Keep(home=tmp_path, base=tmp_path, db=folder.db, blobs=open_blobs(s3), clock=folder.clock)
        for keep in (folder, stored):
            with answering(keep) as address:
                root = f"{address}/api/2.0"
                made = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()
                files = f"{root}/mlflow-artifacts/artifacts/0/{made['run']['info']['run_id']}/artifacts"

                def hammer(number: int, files: str = files) -> None:
                    with httpx.Client(timeout=60) as http:
                        for at in range(20):
                            path, body = f"{files}/{number}/{at}", b"%d %d" % (number, at)
                            assert http.put(path, content=body).status_code == 200
                            assert http.get(path).content == body

                with ThreadPoolExecutor(12) as pool:
                    list(pool.map(hammer, range(12)))


def test_many_put_one_name_at_once(light: str) -> None:
    root = f"{light}/api/2.0"
    run = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
    files = f"{root}/mlflow-artifacts/artifacts/0/{run}/artifacts"
    bodies = [b"%04d" % number for number in range(40)]
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda body=body: answers.append(httpx.put(f"{files}/x", content=body).status_code)
        )
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40
    assert httpx.get(f"{files}/x").content in bodies
