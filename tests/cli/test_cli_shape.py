"""What holds for every command: help with examples, JSON, exit codes, speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modelkeep.cli import exits
from modelkeep.cli.main import COMMANDS, cli
from modelkeep.cli.progress import Shown, watching
from modelkeep.cli.reference import write
from modelkeep.core import errors
from modelkeep.core.ports import Silent

PROGRAM = Path(sys.executable).parent / "modelkeep"
HEAVY = (
    "sklearn",
    "pandas",
    "pyarrow",
    "duckdb",
    "onnxruntime",
    "optuna",
    "sqlalchemy",
    "scipy",
    "numpy",
    "rich",
    "yaml",
)


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


EVERY = list(commands(cli))


@pytest.mark.parametrize(("words", "command"), EVERY, ids=[" ".join(words) for words, _ in EVERY])
def test_every_command_has_help_with_an_example_of_itself(words: tuple[str, ...], command: click.Command) -> None:
    found = CliRunner().invoke(cli, [*words, "--help"])
    assert found.exit_code == 0
    assert f"modelkeep {words[0]}" in found.output.partition("Examples:")[2]
    if not isinstance(command, click.Group):
        assert "--json" in found.output
    if len(words) == 1:
        assert (command.help or "").strip()


def test_the_list_of_commands_is_the_promised_one() -> None:
    promised = (
        "init schema plan apply up show diff trace reproduce rollback predict data labels events demo doctor"
    )
    assert set(promised.split()) <= set(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    """So it answers at once: in a tenth of a second where this was written."""
    code = f"""
import sys
from modelkeep.cli.main import cli
try:
    cli.main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rollback" in done.stdout


def test_an_unknown_command_names_the_nearest() -> None:
    found = CliRunner().invoke(cli, ["aply"])
    assert found.exit_code == 2
    assert "did you mean 'apply'?" in found.output


def test_usage_errors_are_json_too() -> None:
    found = CliRunner().invoke(cli, ["events", "list", "--limit", "many", "--json"])
    assert found.exit_code == 2
    assert json.loads(found.stdout)["error"]["kind"] == "usage"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.Refused("no"), "refused", 1),
        (errors.Conflict("no"), "conflict", 1),
        (errors.Invalid("no", path="a.b"), "invalid", 2),
        (errors.UserCodeFailed("no", traceback="line 1"), "user_code_failed", 2),
        (errors.NotFound("no"), "not_found", 3),
        (errors.Unavailable("no"), "unavailable", 4),
        (errors.MissingExtra("ray", "ray"), "missing_extra", 4),
        (errors.Damaged("no"), "damaged", 5),
    ],
)
def test_every_error_has_its_exit_code(
    error: errors.ModelkeepError, kind: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits.report(error, as_json=True) == code
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == kind
    assert exits.report(error, as_json=False) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert error.message.splitlines()[0] in printed.err
    assert "Traceback" not in printed.err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "invoke", stopped)
    assert CliRunner().invoke(cli, ["schema"]).exit_code == 130


def test_the_unforeseen_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(click.Group, "invoke", broken)
    found = CliRunner().invoke(cli, ["schema", "--json"])
    assert found.exit_code == 70
    assert json.loads(found.stdout)["error"]["message"] == "ZeroDivisionError: nobody foresaw this"
    assert "Traceback" in found.stderr


def test_progress_is_drawn_only_after_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    shown.step("snapshot", 1, 1)
    shown.close()
    assert capsys.readouterr().err == ""
    shown = Shown()
    shown.step("snapshot", 1, 1)
    shown.started -= 2
    for done in range(1000):
        shown.step("train", done, 1000, f"trial {done} [not markup]")
    shown.step("train", 1000, 1000, "done [really]")
    shown.close()
    drawn = capsys.readouterr().err
    assert "snapshot" in drawn
    assert "train" in drawn
    assert "done [really]" in drawn


def test_progress_is_silent_without_a_terminal() -> None:
    with watching() as progress:
        assert isinstance(progress, Silent)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    found = CliRunner().invoke(cli, ["completion", shell])
    assert found.exit_code == 0
    assert "_MODELKEEP_COMPLETE" in found.output


def test_completion_completes() -> None:
    done = subprocess.run(
        [PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={
            "_MODELKEEP_COMPLETE": "bash_complete",
            "COMP_WORDS": "modelkeep rollb",
            "COMP_CWORD": "1",
            "PATH": "",
        },
    )
    assert done.stdout.split() == ["plain,rollback"]


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(f"{PROGRAM} schema | head -1", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_reference_pages_tell_of_every_command_and_field(tmp_path: Path) -> None:
    pages = {page.name: page.read_text() for page in write(tmp_path / "reference")}
    for words, _ in EVERY:
        assert f"`modelkeep {' '.join(words)}`" in pages["cli.md"]
    for word in (
        "`false_alarms`",
        "### `clip_outliers`",
        "`hist_gradient_boosting`",
        "## `train.tune`",
        "`unseen`",
    ):
        assert word in pages["declaration.md"]
    for line in pages["declaration.md"].splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
            assert line.replace("\\|", "").count("|") == 5
