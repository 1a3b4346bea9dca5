"""What engines send to their workers, by name. Every worker that starts imports this, so it imports little."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import numpy as np

from modelkeep.core.errors import Invalid, Problem, UserCodeFailed


def square(value: int) -> int:
    return value * value


def slow_when_small(value: int) -> int:
    time.sleep(0.05 if value < 2 else 0.0)
    return value


def add(left: int, right: int) -> int:
    return left + right


def nest(left: str, right: str) -> str:
    return f"({left}{right})"


def divide(value: int) -> float:
    return 1 / value


def refuse(value: int) -> int:
    if value == 2:
        raise Invalid([Problem("rows[2]", "is wrong"), Problem("rows[3]", "too")], hint="mend it")
    return value


def fail_as_user(value: int) -> int:
    raise UserCodeFailed("the user's function failed", traceback=f"line {value}")


def total(handle, index: int) -> float:
    return float(np.sum(handle()[index::2]))


def node_and_total(handle, folder: str, part: int) -> tuple[str, float]:
    """The node of Ray, and a sum; with a folder, as soon as parts are at work in two processes."""
    import ray

    if folder:
        (Path(folder) / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(Path(folder).iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    return ray.get_runtime_context().get_node_id(), float(handle()[part:].sum())


def rows(handle, column: str) -> int:
    return int(handle().column(column).length())


def begin(folder: str, value: int) -> int:
    (Path(folder) / str(value)).touch()
    time.sleep(0.05)
    return value


def die_once(folder: str, value: int) -> int:
    """Kills its worker the first time it sees 3."""
    mark = Path(folder) / "died"
    if value == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die(value: int) -> int:
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def wait_for_second(folder: str, value: int) -> int:
    """The first copy of 5 waits for a second, and would wait for a minute."""
    mark, second = Path(folder) / "first", Path(folder) / "second"
    if value != 5:
        return value
    if mark.exists():
        second.touch()
        return value
    mark.touch()
    until = time.monotonic() + 60
    while not second.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return value if second.exists() else -1


def reach(address: tuple[str, int], word: bytes) -> bool:
    """Whether somebody who says this word answers there."""
    try:
        with socket.create_connection(address, timeout=20) as found:
            return found.recv(len(word), socket.MSG_WAITALL) == word
    except OSError:
        return False


def mebibytes(count: int) -> bytes:
    return bytes(count << 20)


def slowly(value: int) -> int:
    time.sleep(0.1)
    return value * value


def hold(folder: str, value: int) -> int:
    """Takes a minute, unless it is stopped; each second part in a single call."""
    began = Path(folder) / f"began{value}"
    began.touch()
    time.sleep(60 if value % 2 else 0)
    for _ in range(0 if value % 2 else 1200):
        time.sleep(0.05)
        began.touch()
    (Path(folder) / f"ended{value}").touch()
    return value


def grow(data, params, run):
    """A user's own fit, which kills its worker when it sees a depth of 2 and nobody did before."""
    from sklearn.tree import DecisionTreeClassifier

    depth, mark = params["depth"], Path(params["folder"]) / "died"
    run.log_metric("leaves", 2.0**depth, 1)
    if depth == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if depth == 5:
        raise RuntimeError("unlucky")
    return DecisionTreeClassifier(max_depth=depth, random_state=0).fit(data.matrix, data.target)


_AT_ONCE: list[object] = []


def company(part):
    """Which process this is, and how many others worked there at the same time."""
    _AT_ONCE.append(part)
    try:
        others = 0
        for _ in range(20):
            others = max(others, len(_AT_ONCE) - 1)
            time.sleep(0.01)
        return os.getpid(), others
    finally:
        _AT_ONCE.remove(part)


def pull_when_told(folder, target, guess):
    """An objective, half the squared error, which says which process is at it and waits until it may go on."""
    _wait_when_told(Path(folder))
    return guess - target, np.ones_like(guess)


def grow_when_told(data, params, run):
    """A user's own fit, which says which process is at it, and waits until it may go on."""
    from sklearn.tree import DecisionTreeClassifier

    _wait_when_told(Path(params["folder"]))
    return DecisionTreeClassifier(max_depth=params["depth"], random_state=0).fit(data.matrix, data.target)


def _wait_when_told(folder):
    (folder / f"at {os.getpid()}").touch()
    until = time.monotonic() + 120
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
