"""A version that a client registered stands beside the one that answers, until somebody decides."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from graph_kit import graph_folder
from serving_kit import Home, Worker, worker

from forks import Forks
from modelkeep.registry import endpoints, events, models
from modelkeep.store.blobs import put_tree
from small import Project, until

KEYS = 200


class Place:
    """A home with four versions of one model, a serving process beside it, and commands."""

    def __init__(self, project: Project, forks: Forks, serving: Worker, home: Home) -> None:
        self.project, self.forks, self.serving, self.home = project, forks, serving, home

    def run(self, *words: str) -> tuple[int, str]:
        command = self.forks.run([*words], self.project.folder)
        return command.wait(), " ".join(command.told().split())

    def answers(self) -> dict[float, int]:
        """How many of so many clients got which answer."""
        inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [0.5]} for name in ("a", "b")]
        self.routes()
        found: dict[float, int] = {}
        for key in range(KEYS):
            response = self.serving.infer("m", {"inputs": inputs}, **{"x-modelkeep-key": str(key)})
            value = response.json()["outputs"][0]["data"][0]
            found[value] = found.get(value, 0) + 1
        return found

    def routes(self) -> list[tuple[int, str, float]]:
        """As the registry has them, once they are served."""
        with self.home.db.read() as conn:
            found = endpoints.get(conn, "m")
        assert found is not None
        routes = [(route.version, route.mode, round(route.weight, 4)) for route in found.routes]
        self.serving.until(
            lambda health: any(
                one["endpoint"] == "m"
                and [(way["version"], way["mode"], round(way["weight"], 4)) for way in one["routes"]] == routes
                for one in health["endpoints"]
            )
        )
        return routes

    def aliases(self) -> dict[str, int]:
        with self.home.db.read() as conn:
            return {alias: version.version for version in models.versions(conn, "m") for alias in version.aliases}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("beside")
    project = Project(folder / "project")
    project.folder.mkdir()
    project.declare()
    with project.opened() as keep:
        home = Home(keep.home)
        for number in (1, 2, 3, 4):
            files = graph_folder(folder / str(number), float(number), 1)
            package = put_tree(keep.blobs, {path: files.path / path for path in files})
            keep.db.write(
                lambda conn, package=package: models.register(
                    conn,
                    "m",
                    run_id="",
                    package=package,
                    lineage=None,
                    evaluation={},
                    runtime="graph",
                    note="",
                    now=1.0,
                )
            )
    with worker(home, ready=False) as serving:
        yield Place(project, forks, serving, home)


def test_a_canary_by_hand_from_its_first_request_to_its_end(place: Place) -> None:
    code, said = place.run("deploy", "m@1", "--canary", "10%")
    assert code == 3 and "nothing answers at endpoint 'm' yet" in said
    assert place.run("deploy", "m@1", "--set", "deploy.cache.rows=10")[0] == 0
    assert place.answers() == {1.0: KEYS}
    code, said = place.run("deploy", "m@2", "--canary", "10%", "--because", "a try")
    assert code == 0 and "m@2 stands beside the champion (canary 10%) at m" in said
    assert place.routes() == [(1, "stable", 0.9), (2, "canary", 0.1)]
    few = place.answers()
    assert set(few) == {1.0, 2.0} and few[1.0] > few[2.0]
    assert place.aliases() == {"champion": 1, "challenger": 2}
    assert place.run("deploy", "m@2", "--canary", "50%")[0] == 0, "more of it"
    more = place.answers()
    assert more[2.0] > few[2.0]
    code, said = place.run("deploy", "m@3", "--shadow")
    assert code == 1 and "version 2 is beside version 1" in said

    # the model's rollback ends what is beside, and nothing else
    code, said = place.run("rollback", "m")
    assert code == 0 and "m@1 has all traffic" in said
    assert place.routes() == [(1, "stable", 1.0)]
    assert place.aliases() == {"champion": 1}
    assert place.answers() == {1.0: KEYS}

    # and deploy lets it win, after which a rollback leads to the champion before
    assert place.run("deploy", "m@2", "--canary", "25.5%")[0] == 0
    assert place.routes() == [(1, "stable", 0.745), (2, "canary", 0.255)]
    with place.home.db.read() as conn:
        found = endpoints.get(conn, "m")
        assert found is not None and found.settings["deploy"] == {"cache": {"rows": 10}}, "what it is told stays"
    assert place.run("deploy", "m@2")[0] == 0
    assert place.routes() == [(2, "stable", 1.0)]
    assert place.answers() == {2.0: KEYS}
    assert place.run("rollback", "m")[0] == 0
    assert place.routes() == [(1, "stable", 1.0)]
    with place.home.db.read() as conn:
        told = [(event.kind, event.subject) for event in events.history(conn, subject="m")]
        assert events.verify(conn) == []
    assert [one for one in told if one[0] != "version.registered"] == [
        ("version.promoted", "m@1"),
        ("rollout.started", "m@2"),
        ("rollout.advanced", "m@2"),
        ("rollout.aborted", "m@2"),
        ("rollout.started", "m@2"),
        ("version.promoted", "m@2"),
        ("version.rolled_back", "m@1"),
    ]


def test_a_shadow_by_hand_sees_all_and_answers_nobody(place: Place) -> None:
    assert place.run("deploy", "m@3")[0] == 0
    assert place.run("deploy", "m@4", "--shadow")[0] == 0
    assert place.routes() == [(3, "stable", 1.0), (4, "shadow", 1.0)]
    assert place.answers() == {3.0: KEYS}

    def seen() -> Any:
        told = place.serving.client.get("/metrics").text.splitlines()
        lines = [
            line for line in told if line.startswith("modelkeep_predictions_total") and 'mode="shadow"' in line
        ]
        return sum(float(line.split()[-1]) for line in lines)

    until(lambda: seen() > 0)
    # a version that is named gets everything, whoever is beside
    assert place.run("rollback", "m@1")[0] == 0
    assert place.routes() == [(1, "stable", 1.0)]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["m@1", "--canary", "10%"], 1, "has all traffic of 'm' already"),
        (["m@2", "--canary", "100%"], 2, "expected a share between 0% and 100%"),
        (["m@2", "--canary", "0.1"], 2, "expected a share between 0% and 100%"),
        (["m@2", "--canary", "5%", "--shadow"], 2, "exclude each other"),
        (["m@2", "--shadow", "--memory", "100"], 2, "nothing can be set"),
        (["m@2", "--shadow", "--set", "deploy.cache.rows=1"], 2, "nothing can be set"),
        (["late", "--shadow"], 3, "nothing answers at endpoint 'late' yet"),
    ],
)
def test_what_cannot_stand_beside_is_refused(place: Place, words: list[str], code: int, said: str) -> None:
    assert place.run("deploy", "m@1")[0] == 0
    found, told = place.run("deploy", *words)
    assert (found, said in told) == (code, True), told
