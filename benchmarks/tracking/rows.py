"""What is measured: each row does its work on one running server, checks what came of it, and gives one figure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from benchmarks.tracking import files
from benchmarks.tracking.fill import START
from benchmarks.tracking.load import get, post
from benchmarks.tracking.servers import Server

GROWN = 128
"""Mebibytes that a server may grow by for a file of any size: what waits for the disk or the network."""

CLIENT = """
import sys, time
from mlflow import MlflowClient
client, experiment = MlflowClient(sys.argv[1], sys.argv[1]), sys.argv[2]
client.set_terminated(client.create_run(experiment).info.run_id)
began, busy, done = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - began < float(sys.argv[3]):
    client.set_terminated(client.create_run(experiment).info.run_id)
    done += 1
seconds = time.perf_counter() - began
print(done / seconds, (time.process_time() - busy) / done * 1e3)
"""


@dataclass(frozen=True)
class Side:
    """A server, and what was put into it beforehand.

    Attributes:
        many: The experiment of many runs, with three metrics and three params each.
        wide: The experiment of a thousand runs with ten metrics and ten params each.
        long: A run with a metric ``long`` of 100,000 points.
        seconds: How long to load it.
        quantile: Of the latencies of a search, ``p50`` or ``p99``.
    """

    server: Server
    many: str
    wide: str
    long: str
    seconds: float
    quantile: str = "p50"

    def load(self, work: str, connections: int, **said: Any) -> dict[str, Any]:
        return self.server.load(work, connections, self.seconds, said)

    def ask(self, method: str, path: str, **content: Any) -> Any:
        """One request over HTTP; its answer."""
        with self.server.http() as http:
            sent: dict[str, Any] = {"params": content} if method == "GET" else {"json": content}
            answer = http.request(method, path, **sent)
        answer.raise_for_status()
        return answer.json()

    def experiment(self) -> str:
        return str(self.ask("POST", "experiments/create", name=f"e {uuid4().hex}")["experiment_id"])

    def runs(self, count: int) -> list[str]:
        experiment = self.experiment()
        made = (self.ask("POST", "runs/create", experiment_id=experiment, start_time=1) for _ in range(count))
        return [run["run"]["info"]["run_id"] for run in made]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        unit: ``/s`` and ``MB/s`` where more is better; ``ms`` or ``MB`` where less is.
        times: How often better than the peer it must be; 0 when ``below`` says what it must be, or nothing does.
    """

    key: str
    work: str
    unit: str
    measure: Callable[[Side], float]
    times: float = 0.0
    below: float = 0.0


def create_and_end(side: Side) -> float:
    experiment = side.experiment()
    done = side.load("create_and_end", 8, experiment=experiment)
    assert _finished(side, experiment) == done["operations"], "runs are missing"
    return float(done["operations"] / done["seconds"])


def _finished(side: Side, experiment: str) -> int:
    count, token = 0, ""
    while True:
        asked = {"experiment_ids": [experiment], "filter": "attributes.status = 'FINISHED'", "max_results": 5000}
        page = side.ask("POST", "runs/search", **asked, page_token=token)
        count += len(page.get("runs", ()))
        token = page.get("next_page_token", "")
        if not token:
            return count


def _points(side: Side, run: str, key: str) -> int:
    return len(side.ask("GET", "metrics/get-history", run_id=run, metric_key=key)["metrics"])


def log_metric(connections: int) -> Callable[[Side], float]:
    def measure(side: Side) -> float:
        runs = side.runs(connections)
        done = side.load("log_metric", connections, runs=runs)
        assert sum(_points(side, run, "loss") for run in runs) == done["operations"], "points are missing"
        return float(done["operations"] / done["seconds"])

    return measure


def _log_batch(side: Side) -> dict[str, Any]:
    runs = side.runs(8)
    done = side.load("log_batch", 8, runs=runs)
    kept = sum(_points(side, run, "m0") for run in runs)
    assert kept == done["operations"] * 100, f"{kept} points of {done['operations']} batches"
    return done


def log_batch(side: Side) -> float:
    done = _log_batch(side)
    return float(done["operations"] * 1000 / done["seconds"])


def log_batch_tail(side: Side) -> float:
    return float(_log_batch(side)["p99"])


def client(side: Side) -> float:
    """Runs a second that the real client creates and ends."""
    return _client(side)[0]


def client_itself(side: Side) -> float:
    """Milliseconds of processor time that the client itself takes for each: a server cannot make it quicker."""
    return _client(side)[1]


def _client(side: Side) -> tuple[float, float]:
    """The real client in a process of its own."""
    command = [sys.executable, "-c", CLIENT, side.server.address, side.experiment(), str(side.seconds)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout  # the client prints links too
    rate, busy = told.split()[-2:]
    return float(rate), float(busy)


def search(
    rows: int, check: Callable[[dict[str, Any]], bool] | None = None, **asked: Any
) -> Callable[[Side], float]:
    """Milliseconds of a search, each run of the answer checked."""

    def measure(side: Side) -> float:
        where = [side.wide if rows == 1000 else side.many]
        content = {"experiment_ids": where, "max_results": rows, **asked}
        return _repeated(side, post("runs/search", content), lambda found: _checked(found, rows, check))

    return measure


def _checked(found: Any, rows: int, check: Callable[[dict[str, Any]], bool] | None) -> None:
    runs = found["runs"]
    assert 0 < len(runs) <= rows, len(runs)
    assert all(check(run) for run in runs) if check else len(runs) == rows


def page_fifty(side: Side) -> float:
    token = ""
    asked = {"experiment_ids": [side.many], "max_results": 100}
    for _ in range(49):
        token = side.ask("POST", "runs/search", **asked, page_token=token)["next_page_token"]
    content = post("runs/search", {**asked, "page_token": token})
    return _repeated(side, content, lambda found: _checked(found, 100, None))


def history(side: Side) -> float:
    def whole(found: Any) -> None:
        assert len(found["metrics"]) == 100_000
        assert found["metrics"][-1]["timestamp"] == START + 99_999

    return _repeated(side, get("metrics/get-history", run_id=side.long, metric_key="long"), whole)


def versions(side: Side) -> float:
    names = [f"model {uuid4().hex}" for _ in range(8)]
    for name in names:
        side.ask("POST", "registered-models/create", name=name)
    done = side.load("create_versions", 8, models=names)
    kept = 0
    for name in names:
        last = side.ask("GET", "registered-models/get-latest-versions", name=name)["model_versions"]
        kept += max(int(version["version"]) for version in last)
    assert kept == done["operations"], f"{kept} versions of {done['operations']}"
    return float(done["operations"] / done["seconds"])


def search_models(side: Side) -> float:
    """The first hundred of a thousand models with a version each."""
    with side.server.http() as http:
        for number in range(1000):
            name = f"searched {number:04d}"
            if http.post("registered-models/create", json={"name": name}).status_code == 200:
                http.post("model-versions/create", json={"name": name, "source": "s3://bucket/model"})

    def hundred(found: Any) -> None:
        assert len(found["registered_models"]) == 100
        assert all(model["latest_versions"] for model in found["registered_models"])

    asked = {"max_results": 100, "filter": "name LIKE 'searched%'"}
    return _repeated(side, get("registered-models/search", **asked), hundred)


def _repeated(side: Side, asked: bytes, check: Callable[[Any], None]) -> float:
    """Milliseconds of a request over one keep-alive connection, the side's quantile of at least five."""
    head, _, body = asked.partition(b"\r\n\r\n")
    method, path = head.split(b" ", 2)[:2]
    with httpx.Client(base_url=side.server.address, timeout=120) as http:
        kind = {"content-type": "application/json"}
        answer = http.request(method.decode(), path.decode(), content=body, headers=kind)
        answer.raise_for_status()
        check(answer.json())
    said = {"method": method.decode(), "path": path.decode(), "body": body.decode()}
    once = side.server.load("repeat", 1, 0.0, said)["p50"] / 1000
    done = side.server.load("repeat", 1, max(side.seconds / 2, 5 * once), said)
    return float(done[side.quantile])


def started(side: Side) -> float:
    return side.server.started * 1000


def memory(side: Side) -> float:
    return side.server.memory()


def _metric(run: dict[str, Any], key: str) -> float:
    return float(next(metric["value"] for metric in run["data"]["metrics"] if metric["key"] == key))


def _param(run: dict[str, Any], key: str) -> str:
    return str(next(param["value"] for param in run["data"]["params"] if param["key"] == key))


def ordered(side: Side) -> float:
    """The best hundred runs by a metric."""
    content = {"experiment_ids": [side.many], "max_results": 100, "order_by": ["metrics.m0 DESC"]}

    def falling(found: Any) -> None:
        values = [_metric(run, "m0") for run in found["runs"]]
        assert len(values) == 100
        assert values == sorted(values, reverse=True)

    return _repeated(side, post("runs/search", content), falling)


SEARCHES = [
    Row("search_first", "search, first 100", "ms", search(100), 20),
    Row(
        "search_metric",
        "search, metric filter",
        "ms",
        search(100, lambda run: _metric(run, "m0") > 0.99, filter="metrics.m0 > 0.99"),
        20,
    ),
    Row(
        "search_param",
        "search, param filter",
        "ms",
        search(100, lambda run: _param(run, "p0") == "7", filter="params.p0 = '7'"),
        20,
    ),
    Row("search_page", "search, page 50", "ms", page_fifty, 20),
    Row("order_metric", "order by a metric", "ms", ordered, below=10),
]
ROWS = [
    Row("create_end", "create + end a run, 8 clients", "/s", create_and_end, 50),
    Row("log_metric_1", "log-metric, 1 client", "/s", log_metric(1), 15),
    Row("log_metric_8", "log-metric, 8 clients", "/s", log_metric(8), 80),
    Row("log_batch", "log-batch of 1,000, metrics, 8 clients", "/s", log_batch, 30),
    Row("log_batch_p99", "p99 of log-batch, 8 clients", "ms", log_batch_tail, below=50),
    Row("client", "the real client: create + terminate", "/s", client, 5),
    Row("client_itself", "the real client: its own processor time", "ms", client_itself),
    *SEARCHES,
    Row("search_wide", "search, 1,000 runs with 10 metrics, 10 params", "ms", search(1000), 10),
    Row("history", "history of 100,000 points", "ms", history, 15),
    Row("versions", "registry: create versions, 8 clients", "/s", versions, 40),
    Row("models", "registry: search models", "ms", search_models, 20),
    Row("file_up", "10 KB artifacts up, 8 clients", "/s", files.small_up, 4),
    Row("file_down", "10 KB artifacts down, 8 clients", "/s", files.small_down, 50),
    Row("large_up", "artifact of 500 MB up", "MB/s", files.large_up, 1),
    Row("large_down", "artifact of 500 MB down", "MB/s", files.large_down, 1),
    Row(
        "large_up_memory",
        "memory it took more, at most, while it went up",
        "MB",
        files.large_up_memory,
        below=GROWN,
    ),
    Row("large_down_memory", "and while it went down", "MB", files.large_down_memory, below=GROWN),
    Row("start", "start until /health answers", "ms", started, below=800),
    Row("memory", "memory at rest, all processes", "MB", memory, below=200),
]
