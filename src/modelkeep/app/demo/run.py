"""Set the demo up, play it, sum it up, and leave the server running."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from rich.console import Console

from modelkeep.app.demo.client import Http
from modelkeep.app.demo.score import Month, year
from modelkeep.app.demo.story import DAY, Story, example
from modelkeep.app.demo.view import View
from modelkeep.app.settings import settings
from modelkeep.app.wiring import connect
from modelkeep.core.clock import FileClock
from modelkeep.core.errors import Refused, Unavailable
from modelkeep.formats import runtimes
from modelkeep.lifecycle.apply import apply
from modelkeep.lifecycle.packages import files_of
from modelkeep.registry import events, models
from modelkeep.spec import loading

FOLDER = Path("modelkeep-demo")
BEGIN = 1359676800.0
"""2013-02-01 00:00 UTC: January is over."""


class Told(msgspec.Struct, frozen=True):
    """What the demo showed.

    Attributes:
        months: Month by month.
        year: Weighted over the year.
        promotions: Each promotion and the gates it had passed.
        seconds: How long the telling took.
        control: Where the server answers.
    """

    months: list[Month]
    year: dict[str, float]
    promotions: list[dict[str, Any]]
    seconds: float
    control: str


def run(*, end: bool, as_json: bool, folder: Path = FOLDER, last_month: int = 12) -> Told:
    """Play the demo.

    Args:
        end: Stop after the story instead of leaving the server up.
        as_json: Print one JSON document instead of the live view.
        folder: Where the example is copied and played; its earlier contents are replaced.
        last_month: Of the story, 2 to 12.

    Raises:
        Refused: The folder exists and is not an earlier demo.
    """
    console = Console(stderr=as_json)
    began = time.monotonic()
    base, all_months = _set_up(folder, last_month, console)
    with _ended_by_sigterm(), _up(base) as where, View(console) as view:
        story = _story(base, all_months, where, view)
        months = story.play(range(2, last_month + 1))
        promotions = _promotions(base)
        told = Told(months, year(months), promotions, time.monotonic() - began, where["control"])
        if as_json:
            print(msgspec.json.encode(told).decode())  # noqa: T201 - the document asked for
        else:
            _sum_up(console, view, told)
        if not end:
            console.print(f"\nThe server is still up: open [bold]{where['control']}[/]   (Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return told


def _set_up(folder: Path, last_month: int, console: Console) -> tuple[Path, Path]:
    """Copy the example, write its data, and train on January."""
    folder = folder.resolve()  # the processes it starts work elsewhere
    marker = folder / ".modelkeep"
    if folder.exists() and any(folder.iterdir()) and not marker.is_dir():
        raise Refused(f"{folder} exists and is not an earlier demo", hint="move it away, or run elsewhere")
    shutil.rmtree(folder, ignore_errors=True)
    marker.mkdir(parents=True)
    base = folder
    shutil.copyfile(example("flights") / "modelkeep.yaml", base / "modelkeep.yaml")
    console.print("Writing the flights of 2013 as monthly files ...")
    all_months = base / "months"
    _prepare_module().write_months(all_months, range(1, last_month + 1))
    (base / "data").mkdir()
    shutil.copyfile(all_months / "flights-2013-01.parquet", base / "data" / "flights-2013-01.parquet")
    clock = FileClock(marker / "clock")
    clock.set(BEGIN)
    os.environ["MODELKEEP_CLOCK"] = f"file:{clock.path}"
    os.environ["MODELKEEP_HOME"] = str(marker)
    console.print("Training on January ...")
    with contextlib.closing(connect(settings(base), base)) as keep:
        apply(keep, loading.load(base / "modelkeep.yaml"), because="the first January")
    return base, all_months


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the demo the way Ctrl-C does, so that the server it started ends with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _up(base: Path) -> Iterator[dict[str, str]]:
    """``modelkeep up`` as a process of its own, like any user's."""
    log = base / ".modelkeep" / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "modelkeep.cli.main", "up", "--port", "0", "--serve-port", "0", "--json"]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=base, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Unavailable(f"modelkeep up did not start: {log.read_text()[-2000:]}")
        where: dict[str, str] = json.loads(line)
        yield where
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()


def _story(base: Path, all_months: Path, where: dict[str, str], view: View) -> Story:
    home = base / ".modelkeep"
    with contextlib.closing(connect(settings(base), base)) as keep:
        with keep.db.read() as conn:
            first = models.version(conn, "flights", 1)
        files = files_of(keep.blobs, first.package)
        alone = runtimes.load(files)
        inputs = tuple(field.name for field in runtimes.signature(files).inputs)
    control, serving = (Http(int(where[name].rpartition(":")[2])) for name in ("control", "serving"))
    control.wait_until_ready("/api/modelkeep/status")
    serving.wait_until_ready("/v2/models/flights/ready")
    return Story(
        folder=base,
        all_months=all_months,
        control=control,
        serving=serving,
        clock=FileClock(home / "clock"),
        alone=alone,
        inputs=inputs,
        view=view,
    )


def _promotions(base: Path) -> list[dict[str, Any]]:
    """Every promotion with the verdict of the gates before it."""
    with contextlib.closing(connect(settings(base), base)) as keep, keep.db.read() as conn:
        history = events.history(conn, "flights")
    registered = {event.subject: event.data for event in history if event.kind == "version.registered"}
    return [
        {
            "version": event.subject,
            "day": (event.at - BEGIN) // DAY,
            "because": registered[event.subject]["because"],
            "gates_failed": registered[event.subject]["failed"],
            "gates": registered[event.subject]["gates"],
        }
        for event in history
        if event.kind == "version.promoted"
    ]


def _sum_up(console: Console, view: View, told: Told) -> None:
    console.print(view.table())
    total = told.year
    better = f"{total['months_better']:.0f} of {total['months']:.0f} months"
    console.print(
        f"Over the year the kept model's ROC AUC was [bold]{total['kept_roc_auc']:.3f}[/], "
        f"the January model's {total['alone_roc_auc']:.3f}: better in {better}."
    )
    console.print(
        f"{len(told.promotions)} versions were promoted, each after passing every gate. "
        f"Told in {told.seconds:.0f} s."
    )


def _prepare_module() -> ModuleType:
    path = example("flights") / "prepare.py"
    spec = importlib.util.spec_from_file_location("modelkeep_flights_prepare", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
