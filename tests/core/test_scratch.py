"""Folders of the dead go, those of the living stay."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelkeep.core import scratch

HOLDS = (
    "import sys\nfrom modelkeep.core import scratch\nprint(scratch.folder('code'), flush=True)\nsys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A temporary folder of this test's own, and a process that has not looked there yet."""
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    scratch._sweep.cache_clear()


def other() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path):
    (dead, left), (living, held) = other(), other()
    try:
        (left / "module.py").write_text("x = 1")
        dead.send_signal(signal.SIGKILL)
        dead.wait(30)
        mine = scratch.folder("engine")
        assert not left.exists() and held.exists() and mine.exists()
        scratch._sweep.cache_clear()
        scratch.folder("code")
        assert mine.exists(), "nor what this process holds"
    finally:
        living.kill()
        living.wait(30)
        for process in (dead, living):
            process.stdin.close()
            process.stdout.close()
    for made in [held for held in scratch._HELD if held.parent == tmp_path]:
        scratch.discard(made)


def test_what_is_not_a_folder_of_ours_is_left_alone(tmp_path):
    for name in ("modelkeep-code-abc", "other-code-abc", "modelkeep-code-def/inner"):
        (tmp_path / name).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".owner").touch()
    (tmp_path / "other-code-abc" / ".owner").touch()
    (tmp_path / "modelkeep-code-link").symlink_to(elsewhere)
    with scratch.temporary("score") as made:
        assert made.parent == tmp_path and made.stat().st_mode & 0o77 == 0
    assert not made.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "modelkeep-code-abc",
        "modelkeep-code-def",
        "modelkeep-code-link",
        "other-code-abc",
    ]


def test_a_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    left = tmp_path / "modelkeep-code-abc"
    left.mkdir()
    (left / ".owner").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    scratch._sweep(tmp_path)
    assert left.exists()
    monkeypatch.undo()
    scratch._sweep.cache_clear()
    scratch._sweep(tmp_path)
    assert not left.exists()


def test_discarding_lets_go_of_the_lock():
    made = scratch.folder("engine")
    with (made / ".owner").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        scratch.discard(made)
        fcntl.flock(file, fcntl.LOCK_EX)
    scratch.discard(made)
    assert not made.exists()
