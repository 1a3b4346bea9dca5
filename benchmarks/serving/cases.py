"""What is asked of every server: single rows of three models, and requests of a thousand rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import generator, models, ours, peers
from benchmarks.serving.generator import Load, post
from benchmarks.serving.models import Case
from benchmarks.serving.report import Row

CONNECTIONS = (16, 64)
ASKED = 100


def logistic(folder: Path, quick: bool, chosen: Sequence[str] | None = None) -> list[Row]:
    """Logistic regression on 30 numbers."""
    targets = {"mlserver": ">= 35", "mlflow": ">= 75", "fastapi": ">= 9", "nginx": ">= 0.4"}
    return compared("logistic", folder, quick, _of(peers.PEERS, quick, chosen), targets, {16: "<= 2", 64: "<= 4"})


def forest(folder: Path, quick: bool, chosen: Sequence[str] | None = None) -> list[Row]:
    """A random forest of 100 trees."""
    some = _of(("mlflow", "mlserver", "fastapi"), quick, chosen)
    return compared("forest", folder, quick, some, {"mlflow": ">= 100"})


def text(folder: Path, quick: bool, chosen: Sequence[str] | None = None) -> list[Row]:
    """TF-IDF and naive Bayes on texts of 40 words."""
    some = _of(("mlserver", "fastapi"), quick, chosen)
    return compared("text", folder, quick, some, {"mlserver": ">= 7"})


def _of(able: Iterable[str], quick: bool, chosen: Sequence[str] | None) -> list[str]:
    """Peers to ask: those that were chosen; else all, but only the quickest when there is little time."""
    if chosen is None:
        chosen = ["fastapi"] if quick else list(peers.PEERS)
    return [name for name in able if name in chosen]


def compared(
    name: str,
    folder: Path,
    quick: bool,
    chosen: Sequence[str],
    targets: dict[str, str],
    p99: dict[int, str] | None = None,
) -> list[Row]:
    """Single rows: ours, then each peer at the same numbers of connections."""
    case = models.make(name)
    models.save(case, folder)
    seconds = 2.0 if quick else 6.0
    found: list[Row] = []
    mine: dict[int, Load] = {}
    with ours.serving(ours.home(folder / "home", case)) as served:
        check(case, ours_answers(served.port, case))
        requests = [post(ours.PATH, case.tensor([row])) for row in range(ASKED)]
        for n in CONNECTIONS:
            mine[n] = load = generator.run(served.port, requests, n, seconds, server=served.pids)
            found.append(row_of(name, n, "modelkeep", load))
            if p99:
                found.append(Row(f"{name}, p99", f"{n} conns", load.p99, "ms", target=p99[n]))
        answer = json.dumps(peers.ask(served.port, ours.PATH, case.tensor([0]))).encode()
    if name == "logistic":
        with peers.nginx(folder, answer) as constant:
            if constant is None:
                print("  nginx is not installed: skipped", file=sys.stderr)
            else:
                for n in CONNECTIONS:
                    load = generator.run(constant.port, requests, n, seconds, server=constant.pids)
                    found.append(row_of(name, n, "nginx", load, mine[n], targets.get("nginx", "")))
    for who in chosen:
        peer = peers.PEERS[who]
        try:
            with peers.serving(peer, case, folder) as served:
                answers = [
                    peer.read(peers.ask(served.port, peer.path, peer.body(case, [row]))) for row in range(5)
                ]
                check(case, np.array(answers).reshape(5, -1), peer.name)
                requests = [peer.request(case, [row]) for row in range(ASKED)]
                for n in CONNECTIONS:
                    load = generator.run(served.port, requests, n, seconds, server=served.pids)
                    found.append(row_of(name, n, who, load, mine[n], targets.get(who, "")))
        except RuntimeError as error:
            print(f"  {who} does not serve {name}: {error}", file=sys.stderr)
    return found


def row_of(name: str, n: int, server: str, load: Load, mine: Load | None = None, target: str = "") -> Row:
    """One line of the table; ``mine`` makes it a peer's."""
    ratio = None if mine is None else mine.rate / max(load.rate, 1e-9)
    less = None if mine is None or not mine.cpu or not load.cpu else load.cpu / mine.cpu
    return Row(
        f"{name}, {n} connections",
        server,
        load.rate,
        p50=load.p50,
        p99=load.p99,
        ratio=ratio,
        target=target,
        cpu=load.cpu,
        cpu_ratio=less,
    )


def ours_answers(port: int, case: Case, rows: int = 5) -> Any:
    """Probabilities of the first rows, asked one by one."""
    found = []
    for row in range(rows):
        answer = peers.ask(port, ours.PATH, case.tensor([row]))
        found.append(next(one["data"] for one in answer["outputs"] if one["name"] == "probability"))
    return np.array(found).reshape(rows, -1)


def check(case: Case, answers: Any, who: str = "modelkeep") -> None:
    """End the program unless the answers are scikit-learn's."""
    expected = case.probability[: len(answers)]
    if answers.shape != expected.shape or not np.allclose(answers, expected, atol=1e-4):
        sys.exit(f"{who} answers {case.name} otherwise than scikit-learn:\n{answers}\n{expected}")


def rows(folder: Path, quick: bool) -> list[Row]:
    """Requests of a thousand rows, as JSON and as raw tensors."""
    case = models.make("logistic")
    many = [[(start * 41 + row) % len(case.rows) for row in range(1000)] for start in range(8)]
    seconds = 2.0 if quick else 6.0
    found = []
    with ours.serving(ours.home(folder / "home", case)) as served:
        check(case, ours_answers(served.port, case))
        binary = [post(ours.PATH, *case.binary(each)) for each in many]
        as_json = [post(ours.PATH, case.tensor(each)) for each in many]
        for name, requests, target in (("JSON", as_json, ">= 450000"), ("raw tensors", binary, ">= 3000000")):
            load = generator.run(served.port, requests, 4, seconds, server=served.pids)
            case_name = f"1,000 rows, {name}"
            found.append(
                Row(
                    case_name,
                    "modelkeep",
                    load.rate * 1000,
                    "rows/s",
                    load.p50,
                    load.p99,
                    target=target,
                    cpu=load.cpu,
                )
            )
    return found
