"""Bad data through the command line: a clear error, the right exit code, and no trace of half-done work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from modelkeep.cli.main import cli
from small import Project, rows

KEPT = ("versions", "models", "snapshots", "endpoints", "jobs", "aliases", "run_artifacts", "captures")
"""Tables in which a failed apply leaves nothing."""


def run(project: Project, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "-f", str(project.folder / "modelkeep.yaml")])


def refused(project: Project, code: int, verb: str = "apply", *, readable: bool = False) -> dict[str, Any]:
    """Run a verb that must fail, in words and as JSON: what it said, once nothing is left behind."""
    before = leftovers(project)
    words, told = run(project, verb), run(project, verb, "--json")
    assert (words.exit_code, told.exit_code) == (code, code), words.output + told.output
    for found in (words, told):
        assert "Traceback" not in found.output, found.output
        assert "fault of modelkeep" not in found.output, found.output
    assert words.stdout == ""
    assert words.stderr.startswith("error: "), words.stderr
    error: dict[str, Any] = json.loads(told.stdout)["error"]
    assert error["message"].splitlines()[0] in words.stderr
    after = leftovers(project)
    if readable:  # the rows are as they should be, so their snapshot stays; what was asked of them is not
        after["snapshots"] = before["snapshots"]
    assert after == before
    assert project.running() == []
    return error


def leftovers(project: Project) -> dict[str, Any]:
    state = project.state()
    return {name: state[name] for name in (*KEPT, "head")}


def mended(project: Project, version: int = 1) -> None:
    """A good apply works afterwards, and nothing is left to do after it."""
    project.write()
    done = run(project, "apply", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["version"], told["champion"]) == (version, True)
    stages = json.loads(run(project, "plan", "--json").stdout)["stages"]
    assert {stage["action"] for stage in stages} == {"reuse"}


def frame(change: Callable[[pd.DataFrame], Any]) -> bytes:
    table = rows(600)
    changed = change(table)
    text: str = (table if changed is None else changed).to_csv(index=False)
    return text.encode()


def lines(change: Callable[[list[str]], Any]) -> bytes:
    text = frame(lambda table: None).decode().splitlines()
    change(text)
    return ("\n".join(text) + "\n").encode()


def put(line: int, text: str) -> Callable[[list[str]], Any]:
    return lambda found: found.__setitem__(line, text)


WHOLE: dict[str, tuple[bytes, int, list[str]]] = {
    "empty": (b"", 2, ["data/one.csv", "the file is empty"]),
    "header only": (b"id,x,z,place,late\n", 2, ["data/one.csv", "there is a header but no row"]),
    "latin-1": (lines(put(7, "5,0.1,0.2,Köln,1")).decode().encode("latin-1"), 2, ["data/one.csv:8", "not UTF-8"]),
    "utf-16": (lines(lambda found: None).decode().encode("utf-16"), 2, ["data/one.csv:1", "UTF-16"]),
    "ragged": (lines(put(4, "3,0.1,0.2,a,1,9")), 2, ["data/one.csv:5", "6 fields, the header 5"]),
    "mixed types": (lines(put(9, "8,oops,0.2,a,1")), 2, ["data/one.csv:10", "'x' mixes numbers and text: 'oops'"]),
    "two columns of one name": (lines(put(0, "id,x,x,place,late")), 2, ["data/one.csv:1", "two columns"]),
    "no target": (frame(lambda t: t.drop(columns="late")), 2, ["data.target", "no column 'late'"]),
    "constant target": (frame(lambda t: t.assign(late=1)), 2, ["data.target", "'late' is 1 in all 600 rows"]),
    "one class only": (frame(lambda t: t[t.late == 0]), 2, ["data.target", "'late' is 0 in all"]),
    "target all missing": (frame(lambda t: t.assign(late=np.nan)), 1, ["600 rows: late (the target) is missing"]),
    "too few rows": (frame(lambda t: t.head(5)), 1, ["5 rows", "data.checks.min_rows"]),
    "no key": (frame(lambda t: t.drop(columns="id")), 2, ["data.key", "'id'"]),
    "no feature": (frame(lambda t: t.drop(columns="place")), 2, ["features[2]", "'place'"]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_source_that_cannot_be_learnt_from(project: Project, name: str) -> None:
    content, code, said = WHOLE[name]
    (project.folder / "data" / "one.csv").write_bytes(content)
    error = refused(project, code)
    for part in said:
        assert part in error["message"], error["message"]
    mended(project)


@pytest.mark.parametrize("name", ["empty", "ragged", "mixed types", "no target", "constant target"])
def test_a_bad_file_harms_nothing_that_stands(project: Project, name: str) -> None:
    assert run(project, "apply").exit_code == 0
    (project.folder / "data" / "one.csv").write_bytes(WHOLE[name][0])
    refused(project, WHOLE[name][1])
    shown = json.loads(run(project, "show", "late", "--json").stdout)
    assert [version["aliases"] for version in shown["versions"]] == [["champion"]]
    project.write("two", 100, first=5000)
    mended(project, version=2)


def test_a_missing_file(project: Project) -> None:
    (project.folder / "data" / "one.csv").unlink()
    error = refused(project, 3)
    assert "no data file matches 'data/*.csv'" in error["message"]
    assert error["kind"] == "not_found"
    refused(project, 3, "plan")
    mended(project)


def test_a_damaged_parquet_file(project: Project) -> None:
    project.declare(lambda said: said["data"].update(source="data/one.parquet"))
    path = project.folder / "data" / "one.parquet"
    rows(600).to_parquet(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert "data/one.parquet" in refused(project, 2)["message"]
    path.write_bytes(good)
    assert run(project, "apply").exit_code == 0


def test_an_all_null_column_and_missing_values_are_learnt_around(project: Project) -> None:
    def holes(table: pd.DataFrame) -> pd.DataFrame:
        table["x"] = table["x"].where(table.index % 7 != 0)
        return table.assign(empty=np.nan)

    (project.folder / "data" / "one.csv").write_bytes(frame(holes))
    done = run(project, "apply", "--json")
    if done.exit_code:  # saying that there is nothing in it is as good
        assert "empty" in json.loads(done.stdout)["error"]["message"], done.output
        mended(project)
        return
    assert json.loads(done.stdout)["champion"] is True


def test_values_without_an_imputer_are_named(project: Project) -> None:
    project.declare(lambda said: said["features"].pop(0))
    (project.folder / "data" / "one.csv").write_bytes(frame(lambda t: t.assign(x=t.x.where(t.index % 7 != 0))))
    error = refused(project, 2, readable=True)
    assert "missing or infinite values" in error["message"]
    assert "x" in error["message"]
    mended(project)


def test_infinite_values_are_set_aside_or_named(project: Project) -> None:
    (project.folder / "data" / "one.csv").write_bytes(
        frame(lambda t: t.assign(x=t.x.where(t.index % 3 != 0, np.inf)))
    )
    error = refused(project, 1)
    assert "'x'" in error["message"] or "x" in error["message"].split()
    assert "infinite" in error["message"] or "inf" in error["message"]
    mended(project)


def test_duplicated_keys(project: Project) -> None:
    (project.folder / "data" / "one.csv").write_bytes(frame(lambda t: pd.concat([t, t.head(200)])))
    error = refused(project, 1)
    assert "id" in error["message"]
    assert "data.checks.quarantine" in error["message"]
    mended(project)


def test_ten_thousand_columns(project: Project) -> None:
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(60, 10_000)).round(2), columns=[f"c{i}" for i in range(10_000)])
    wide["late"] = (wide.c0 + wide.c1 > 0).astype(int)
    wide["id"] = range(60)
    project.declare(lambda said: said.update(features=[], gates=[]))
    wide.to_csv(project.folder / "data" / "one.csv", index=False)
    done = run(project, "apply", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["champion"] is True


def test_a_type_that_changes_from_file_to_file(project: Project) -> None:
    rows(100, first=9000).assign(x="text").to_csv(project.folder / "data" / "two.csv", index=False)
    error = refused(project, 2)
    assert "'x'" in error["message"]
    assert "two.csv" in error["message"]
    (project.folder / "data" / "two.csv").unlink()
    mended(project)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["apply", "-f", str(tmp_path / "no" / "modelkeep.yaml"), "--json"])
    assert found.exit_code == 3
    assert json.loads(found.stdout)["error"]["kind"] == "not_found"
    assert list(tmp_path.iterdir()) == []
