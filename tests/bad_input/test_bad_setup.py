"""Bad declarations, broken user code, full and read-only disks, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelkeep.cli.main import cli
from small import Project

ROOT = os.geteuid() == 0


def run(project: Project, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "-f", str(project.folder / "modelkeep.yaml")])


def refused(project: Project, code: int) -> dict[str, Any]:
    """An apply that must fail: what it said."""
    words, told = run(project, "apply"), run(project, "apply", "--json")
    assert (words.exit_code, told.exit_code) == (code, code), words.output + told.output
    assert "fault of modelkeep" not in words.output + told.output
    assert words.stderr.startswith("error: "), words.stderr
    error: dict[str, Any] = json.loads(told.stdout)["error"]
    return error


def works(project: Project, version: int = 1) -> None:
    done = run(project, "apply", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["version"] == version


def test_a_gate_naming_an_unknown_metric(project: Project) -> None:
    project.declare(lambda said: said.update(gates=["roc_acu >= 0.6", "late >= 1"]))
    error = refused(project, 2)
    first, second = error["problems"]
    assert (first["path"], first["file"].rpartition("/")[2]) == ("gates[0]", "modelkeep.yaml")
    assert "did you mean 'roc_auc'?" in first["message"]
    lines = (project.folder / "modelkeep.yaml").read_text().splitlines()
    assert "roc_acu" in lines[first["line"] - 1]
    assert "late" in second["message"]
    assert not (project.folder / ".modelkeep").exists()
    project.declare(lambda said: said.update(gates=["roc_auc >= 0.6"]))
    works(project)


def test_a_gate_on_a_metric_of_another_task(project: Project) -> None:
    project.declare(lambda said: said.update(gates=["rmse <= 3"]))
    error = refused(project, 2)
    assert "gates[0]" in error["message"]
    assert "rmse" in error["message"]
    if (project.folder / ".modelkeep").exists():
        assert project.running() == []
        assert project.kinds() == []
    project.declare(lambda said: said.update(gates=["roc_auc >= 0.6"]))
    works(project)


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("model: m\ndata: {source: a.csv\n", "expected", 3),
        ("model: m\n\tdata: x\n", "tab", 2),
        ("- just\n- a list\n", "expected", 1),
        ("", "", 0),
        ("model: [\x00", "", 0),
        ("model: m\nmodel: n\ndata: {source: a.csv, target: y}\n", "twice", 2),
    ],
)
def test_malformed_yaml_is_told_with_its_line(project: Project, text: str, said: str, line: int) -> None:
    (project.folder / "modelkeep.yaml").write_text(text)
    error = refused(project, 2)
    assert "Traceback" not in run(project, "apply").output
    assert said in error["message"]
    assert "modelkeep.yaml" in error["message"]
    if line:
        assert error["problems"][0]["line"] in (line, line - 1)
    assert not (project.folder / ".modelkeep").exists()


def test_a_declaration_that_is_not_utf8(project: Project) -> None:
    (project.folder / "modelkeep.yaml").write_bytes("model: Köln\n".encode("latin-1"))
    error = refused(project, 2)
    assert "UTF-8" in error["message"]
    assert "modelkeep.yaml" in error["message"]


MINE = "mine"
BROKEN = (
    "def work(*given, **more):\n    helper(given)\n\n\ndef helper(given):\n    return given[0]['nothing'] / 0\n"
)


@pytest.mark.parametrize("where", ["train", "features", "source"])
def test_a_broken_function_of_the_user(project: Project, where: str) -> None:
    good = json.loads(json.dumps(project.said))
    if where == "train":
        project.said["train"] = {
            "algorithm": f"{MINE}_{where}:work",
            "task": "classification",
            "metric": "roc_auc",
        }
    elif where == "features":
        step = {"function": f"{MINE}_{where}:work", "columns": ["x", "z"]}
        project.said["features"] = [{"encode": {"columns": ["place"]}}, {"function": step}]
    else:
        project.said["data"]["source"] = {"function": f"{MINE}_{where}:work"}
    (project.folder / f"{MINE}_{where}.py").write_text(BROKEN)
    project.declare()
    error = refused(project, 2)
    assert error["kind"] == "user_code_failed"
    assert f"{MINE}_{where}.py" in error["message"]
    assert "line 6, in helper" in error["message"]
    assert "site-packages" not in error["message"]
    assert "modelkeep/" not in error["message"].replace(str(project.folder), "")
    assert len(error["message"].splitlines()) < 15
    assert project.running() == []
    assert project.kinds() == []
    project.said = good
    project.declare()
    works(project)


@pytest.mark.parametrize(
    ("where", "text", "said"),
    [
        ("syntax", "def work(:\n", "mine_syntax.py"),
        ("import", "import nothing_like_it\n", "nothing_like_it"),
        ("name", "x = 1\n", "work"),
    ],
)
def test_a_module_of_the_user_that_cannot_be_imported(project: Project, where: str, text: str, said: str) -> None:
    good = json.loads(json.dumps(project.said))
    (project.folder / f"{MINE}_{where}.py").write_text(text)
    project.declare(
        lambda told: told["train"].update(algorithm=f"{MINE}_{where}:work", task="classification", params={})
    )
    error = refused(project, 2)
    assert said in error["message"]
    assert "site-packages" not in error["message"]
    assert project.running() == []
    project.said = good
    project.declare()
    works(project)


def test_a_parameter_the_algorithm_does_not_have(project: Project) -> None:
    project.declare(lambda said: said["train"]["params"].update(depth=3))
    assert "train.params.depth" in refused(project, 2)["message"]
    project.declare(lambda said: said["train"].update(params={"C": -1.0}))
    assert "train.params.C" in refused(project, 2)["message"]
    project.declare(lambda said: said["train"].update(params={"C": 1.0}))
    works(project)
    assert project.running() == []


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(not ROOT, reason="only root may mount a small disk")
@pytest.mark.parametrize("size", ["64k", "480k", "560k", "640k"])
def test_a_full_disk(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    home = tmp_path / "small"
    monkeypatch.setenv("MODELKEEP_HOME", str(home / "home"))
    with disk(home, size):
        error = refused(project, 4)
        assert "full" in error["message"] or "No space left" in error["message"], error
        subprocess.run(["mount", "-o", "remount,size=64m", str(home)], check=True)
        assert "version.registered" not in project.kinds()
        works(project)
        assert project.running() == []
        assert project.kinds() == ["version.registered", "version.promoted"]
        assert run(project, "doctor").exit_code == 0


@pytest.mark.skipif(not ROOT, reason="only root may mount a read-only disk; permissions do not stop root")
def test_a_home_that_becomes_read_only(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "small"
    monkeypatch.setenv("MODELKEEP_HOME", str(home / "home"))
    with disk(home, "64m"):
        works(project)
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        project.declare(lambda said: said["train"]["params"].update(C=0.5))
        error = refused(project, 4)
        assert str(home) in error["message"] or "read-only" in error["message"].lower(), error
        subprocess.run(["mount", "-o", "remount,rw", str(home)], check=True)
        works(project, version=2)


@pytest.mark.skipif(not ROOT, reason="only root may mount a read-only disk; permissions do not stop root")
def test_a_home_that_cannot_be_made(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "small"
    monkeypatch.setenv("MODELKEEP_HOME", str(home / "home"))
    with disk(home, "64k"):
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        error = refused(project, 4)
        assert "cannot be made" in error["message"]
        assert "MODELKEEP_HOME" in error["hint"]
