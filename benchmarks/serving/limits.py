"""What happens at the limits: several processes, overload, a hundred swaps; what a process costs at rest."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import msgspec

from benchmarks.proc import resident
from benchmarks.serving import cases, generator, models, ours
from benchmarks.serving.generator import post
from benchmarks.serving.report import Row
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Route
from modelkeep.store.blobs import open_blobs, put_tree
from modelkeep.store.database import Database

BUDGET_MS = 100


def processes(folder: Path, quick: bool) -> list[Row]:
    """Two processes against one, each beside a generator of its own on the same core: no third core is needed.

    One server and its generator share core 0; then two servers and two generators share cores 0 and 1. What a
    second core brings is measured, and the generators' share is the same both times.
    """
    case = models.make("forest")
    home = ours.home(folder / "home", case)
    seconds = 3.0 if quick else 6.0
    requests = [post(ours.PATH, case.tensor([(start + row) % 569 for row in range(100)])) for start in range(20)]
    rates = []
    for cores in ((0,), (0, 1)):
        with ours.fleet(home, len(cores), cores) as served:
            rates.append(generator.together(served.port, requests, 16, seconds, cores))
    (one,), two = rates
    both = sum(load.rate for load in two)
    return [
        Row("1 process and generator, 1 core", "modelkeep", one.rate, p50=one.p50, p99=one.p99),
        Row("2 and 2, 2 cores", "modelkeep", both, p50=two[0].p50, p99=max(load.p99 for load in two)),
        Row("2 processes by 1", "modelkeep", both / one.rate, "times", target=">= 1.8"),
    ]


def overload(folder: Path, quick: bool) -> list[Row]:
    """Three times as many requests as can be answered, due on a schedule, at a budget of 100 ms.

    Twice: where predicting is nearly all of the work, and where reading requests is a good part of it. Who refuses
    must have read that; so the second can only come near to the first.
    """
    heavy = _overloaded(folder / "heavy", quick, "thousand", 50, "50 rows of 1,000 trees")
    large = _overloaded(folder / "large", quick, "forest", 200, "200 rows of 100 trees")
    return heavy + large


def _overloaded(folder: Path, quick: bool, model: str, rows: int, name: str) -> list[Row]:
    case = models.make(model)
    home = ours.home(folder, case, batch={"budget": f"{BUDGET_MS}ms"})
    seconds = 4.0 if quick else 10.0
    requests = [post(ours.PATH, case.tensor([(start + row) % 569 for row in range(rows)])) for start in range(20)]
    with ours.serving(home) as served:
        cases.check(case, cases.ours_answers(served.port, case))
        capacity = generator.run(served.port, requests, 16, seconds)
        beyond = generator.run(served.port, requests, 256, seconds, rate=3 * capacity.rate, warm=2.0)
    lost = beyond.other + beyond.broken
    refused = beyond.refused / beyond.seconds
    return [
        Row(f"{name}, capacity", "modelkeep", capacity.rate, p50=capacity.p50, p99=capacity.p99),
        Row(f"{name}, 3x overload", "modelkeep", beyond.rate, p50=beyond.p50, p99=beyond.p99),
        Row(f"{name}, goodput", "modelkeep", beyond.rate / capacity.rate, "of capacity", target=">= 0.9"),
        Row(f"{name}, p99 answered", "modelkeep", beyond.p99, "ms", target=f"<= {BUDGET_MS}"),
        Row(f"{name}, refused", "modelkeep", refused, p50=beyond.refused_p50, p99=beyond.refused_p99),
        Row(f"{name}, lost", "modelkeep", lost, "requests", target="<= 0"),
    ]


def swaps(folder: Path, quick: bool) -> list[Row]:
    """Versions change all the time under full load, each when the one before has answered somebody.

    What counts is the versions in the answers to the load, not how often the registry was written.
    """
    case = models.make("logistic")
    home = ours.home(folder / "home", case)
    database = Database.open(f"sqlite:///{home / 'modelkeep.db'}")
    other = put_tree(open_blobs(str(home / "blobs")), {**case.files, "card.md": b"another version"})
    with database.read() as conn:
        first = endpoints.get(conn, "bench")
    assert first is not None
    packages = [first.routes[0].package, other]
    times = 20 if quick else 100
    requests = [post(ours.PATH, case.tensor([row])) for row in range(100)]
    body, json_type = case.tensor([0]), {"content-type": "application/json"}
    ended = threading.Event()

    def answering(port: int) -> int:
        probe = urllib.request.Request(f"http://127.0.0.1:{port}{ours.PATH}", body, json_type)
        with urllib.request.urlopen(probe, timeout=30) as answer:
            return int(json.loads(answer.read())["model_version"])

    def change(port: int) -> None:
        ended.wait(1)  # until the load is there
        for version in range(2, times + 2):
            route = Route(version=version, package=packages[version % 2], weight=1.0, mode="stable")
            changed = msgspec.structs.replace(first, routes=(route,))
            database.write(lambda conn, changed=changed: endpoints.put(conn, changed))  # type: ignore[misc]
            while answering(port) != version:
                if ended.wait(0.02):
                    return

    with ours.serving(home) as served:
        thread = threading.Thread(target=change, args=(served.port,))
        thread.start()
        load = generator.run(
            served.port,
            requests,
            16,
            times * 5,
            warm=0.0,
            mark='"model_version":"',
            over=lambda: not thread.is_alive(),
        )
        ended.set()
        thread.join()
    database.close()
    failed = load.other + load.broken + load.refused
    return [
        Row(f"{times} swaps under load", "modelkeep", load.rate, p50=load.p50, p99=load.p99),
        Row("versions seen in the answers", "modelkeep", load.texts, "versions", target=f">= {times + 1}"),
        Row("failed requests", "modelkeep", failed, "requests", target="<= 0"),
    ]


def start(folder: Path, quick: bool) -> list[Row]:
    """From the start of a process to its first answer, and its memory, with one small model and with a hundred."""
    case = models.make("logistic")
    requests = [post(ours.PATH, case.tensor([row])) for row in range(100)]
    home = ours.home(folder / "home", case)
    with ours.serving(home):
        pass  # the first start copies the package
    with ours.serving(home) as served:
        ready, at_rest = served.ready_seconds, served.rss
        generator.run(served.port, requests, 16, 1.0)
        busy = resident(served.pids[0])
    forest = models.make("forest")
    one = _resting(folder / "one", forest, 1)
    hundred = _resting(folder / "hundred", forest, 100)
    size = len(forest.files["model.onnx"]) / 2**20
    return [
        Row("ready", "modelkeep", ready, "s", target="<= 1"),
        Row("memory, 1 small model", "modelkeep", at_rest, "MiB", target="<= 150"),
        Row("memory, after a second of load", "modelkeep", busy, "MiB"),
        Row("memory, 100 forests", "modelkeep", hundred, "MiB"),
        Row("each further forest", "modelkeep", (hundred - one) / 99, "MiB"),
        Row("a forest's file", "modelkeep", size, "MiB"),
    ]


def _resting(folder: Path, case: models.Case, count: int) -> float:
    """Resident mebibytes of a process with so many models, each a package of its own."""
    home = ours.home(folder, case, copies=count)
    with ours.serving(home) as served:
        return served.rss
