"""Ctrl-C in a real terminal, which tells every process of the command: once to drain, twice to be gone."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from forks import alive, children_of

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from isolated_kit import sleeper
from serving_kit import Home

from modelkeep.store.blobs import put_tree

CTRL_C = b"\x03"
LONG = "600"
"""Seconds that a request takes, and that it is given to end in."""


@contextmanager
def terminal(home: Home, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command that has a terminal of its own; what is written to the descriptor is typed there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "modelkeep.cli.main", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=home.path,
        env={**os.environ, "MODELKEEP_HOME": str(home.path), "MODELKEEP_DRAIN": LONG},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(said: Callable[[], object], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not said():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("words", [("serve", "--port"), ("up", "--no-loop", "--port", "0", "--serve-port")])
def test_once_it_drains_twice_everything_ends(tmp_path: Path, words: tuple[str, ...]) -> None:
    home = Home(tmp_path / "home")
    files, digest = sleeper(tmp_path / "sleeper")
    patient = {"batch": {"budget": f"{LONG}s"}}
    home.serve("sleeper", (1, put_tree(home.blobs, files), 1.0, "stable"), trust=[digest], deploy=patient)
    asked = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [float(LONG)]}]}
    with terminal(home, *words, "0", "--json") as (process, keys), ThreadPoolExecutor(1) as pool:
        said = b""
        while b"\n" not in said:
            said += os.read(keys, 65_536)
        serving = said.decode().split('"serving":')[1].split('"')[1]

        def health() -> dict[str, object]:
            try:
                return httpx.get(f"{serving}/modelkeep/health", timeout=10).json()  # type: ignore[no-any-return]
            except httpx.HTTPError:
                return {}

        until(lambda: health().get("endpoints"))
        slow = pool.submit(httpx.post, f"{serving}/v2/models/sleeper/infer", json=asked, timeout=100)
        until(lambda: '"state": "busy"' in str(health()).replace("'", '"'))
        (child,) = children_of(process.pid)
        os.write(keys, CTRL_C)
        until(lambda: health() == {})  # no further connection is taken
        time.sleep(1)
        assert process.poll() is None
        assert alive(child)
        assert not slow.done()
        os.write(keys, CTRL_C)
        assert process.wait(15) == 0
        until(lambda: not alive(child), 10)
        assert slow.result().status_code == 503
