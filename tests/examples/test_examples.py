"""The examples through the command line, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from forks import Forks
from modelkeep.spec.loading import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Prepare = Callable[[str], ModuleType]


README_BLOCK = re.compile(r"^<!-- run(?P<fails>: fails)? -->\n```bash\n(?P<text>.*?)^```$", re.M | re.S)


def own_environment(commands: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
    return own | {"PATH": f"{commands}:{Path(sys.executable).parent}:{own['PATH']}"}


@dataclass(frozen=True)
class Folder:
    """A user's copy of an example."""

    path: Path
    commands: Path

    def run(self, *words: str, code: int = 0) -> Any:
        """Run a command and give back what it printed as JSON."""
        command = ["modelkeep", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.path, env=own_environment(self.commands), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return json.loads(done.stdout)

    def follow(self) -> None:
        """Do what the example's README says."""
        for found in README_BLOCK.finditer((self.path / "README.md").read_text()):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", found["text"]],
                cwd=self.path,
                env=own_environment(self.commands),
                capture_output=True,
                text=True,
                check=False,
            )
            said = f"{found['text']}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            assert (done.returncode != 0) == bool(found["fails"]), said

    def actions(self) -> dict[str, str]:
        return {stage["name"]: stage["action"] for stage in self.run("plan")["stages"]}


@pytest.fixture
def copied(tmp_path: Path, forks: Forks) -> Callable[[str], Folder]:
    def copy(example: str) -> Folder:
        for path in (EXAMPLES / example).glob("*.*"):
            shutil.copy(path, tmp_path)
        return Folder(tmp_path, forks.commands)

    return copy


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_declarations_load(path: Path) -> None:
    assert load(path).gates


@pytest.mark.slow
def test_flights_are_applied_and_grow(copied: Callable[[str], Folder], prepare: Prepare) -> None:
    folder = copied("flights")
    folder.follow()
    (first,) = folder.run("show", "flights")["versions"]
    assert first["aliases"] == ["champion"] and first["metrics"]["roc_auc"] > 0.60
    gates = folder.run("show", "flights@1")["evaluation"]["gates"]
    assert [gate["passed"] for gate in gates] == [True] * len(load(folder.path / "modelkeep.yaml").gates)

    text = (folder.path / "modelkeep.yaml").read_text()
    (folder.path / "modelkeep.yaml").write_text(text.replace("max_iter: 150", "max_iter: 100"))
    (folder.path / "data" / "flights-2013-02.parquet").unlink()
    changed = folder.actions()
    assert (changed["snapshot"], changed["prepare"], changed["train"]) == ("reuse", "reuse", "run")

    prepare("flights").write_months(folder.path / "data", [7])
    second = folder.run("apply")
    assert second["version"] == 2 and not second["champion"]
    assert folder.run("data", "quarantine")["rows"] == 0  # July is no January, and yet no row is at fault
    routes = folder.run("show")["endpoints"][0]["routes"]
    assert [route["mode"] for route in routes] == ["stable", "shadow"]


@pytest.mark.slow
def test_linear_models_challenge_naive_bayes(copied: Callable[[str], Folder]) -> None:
    folder = copied("text")
    folder.follow()
    bayes, linear = folder.run("show", "articles")["versions"]
    assert bayes["metrics"]["f1_macro"] > 0.93 and linear["metrics"]["f1_macro"] > 0.93
    assert linear["aliases"] == ["champion"]
    given = folder.path / "one.jsonl"
    given.write_text(json.dumps({"text": "The striker scored twice in the second half of the cup final."}))
    answer = folder.run("predict", "articles", str(given))["predictions"]
    assert answer["label"] == ["sports"]
    probabilities = [values[0] for name, values in answer.items() if name.startswith("probability_")]
    assert len(probabilities) == 5 and sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_boosting_must_show_that_it_is_better(copied: Callable[[str], Folder]) -> None:
    folder = copied("regression")
    folder.follow()
    show = folder.run("show", "diabetes")
    (ridge,) = show["versions"]
    assert ridge["aliases"] == ["champion"] and 45 < ridge["metrics"]["rmse"] < 65
    assert [route["version"] for route in show["endpoints"][0]["routes"]] == [1]
    (refused,) = folder.run("events", "list", "--kind", "version.refused")["events"]
    assert refused["data"]["failed"] == ["rmse <= champion.rmse"]


@pytest.mark.slow
def test_a_click_log_is_learnt_from_in_parts(copied: Callable[[str], Folder]) -> None:
    folder = copied("bigdata")
    folder.follow()
    (made,) = folder.run("show", "clicks")["versions"]
    assert made["metrics"]["log_loss"] < 0.42  # 0.44 is what the rate of clicks alone gives
    scored = [pq.read_metadata(path).num_rows for path in (folder.path / "scored").rglob("*.parquet")]
    assert sum(scored) == 200_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "metric", "epochs"), [("torch", "accuracy", 15), ("keras", "roc_auc", 10)], ids=["torch", "keras"]
)
def test_networks_are_kept_as_graphs(
    copied: Callable[[str], Folder], example: str, metric: str, epochs: int
) -> None:
    folder = copied(example)
    folder.follow()
    (made,) = folder.run("show", load(folder.path / "modelkeep.yaml").model)["versions"]
    assert made["aliases"] == ["champion"] and made["runtime"] == "onnx" and made["metrics"][metric] > 0.93
    with closing(sqlite3.connect(folder.path / ".modelkeep" / "modelkeep.db")) as conn:
        query = "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
        losses = conn.execute(query).fetchall()
    assert [step for step, _ in losses] == list(range(1, epochs + 1))
    assert losses[-1][1] < losses[0][1]
