"""The control server of a home, in a thread."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from modelkeep.app import control
from modelkeep.app.protection import Protection
from modelkeep.core.clock import SystemClock
from modelkeep.lifecycle.keep import Keep
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

_LOCAL = Protection()


@contextlib.contextmanager
def answering(keep: Keep, protection: Protection = _LOCAL) -> Iterator[str]:
    """The control server of a home, in a thread; yields its address."""
    config = control.config(keep, dict, str, protection=protection, port=0, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def home(url: str, folder: Path) -> Iterator[Keep]:
    """An opened home over a database."""
    keep = Keep(
        home=folder,
        base=folder,
        db=Database.open(url),
        blobs=open_blobs(str(folder / "blobs")),
        clock=SystemClock(),
    )
    with contextlib.closing(keep):
        yield keep
