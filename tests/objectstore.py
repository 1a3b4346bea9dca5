"""A real S3 server: SeaweedFS, from PyPI, on this machine and for this run of the tests only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
KEY, SECRET = "tests", "only for tests"


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server that answers.

    Attributes:
        endpoint: ``http://127.0.0.1:<port>``.
        environment: What object-store clients, ``obstore`` among them, read to find it and be let in.
    """

    endpoint: str
    environment: dict[str, str]

    def prefix(self) -> str:
        """The URL of a place under which there is nothing yet; a bucket each would take a server's volumes."""
        return f"s3://tests/{uuid4().hex}"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[ObjectStore]:
    """Run the server with its data in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
    config.write_text(json.dumps({"identities": [identity]}))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = {name: one.getsockname()[1] for name, one in zip(_PORTS, sockets, strict=True)}
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    command = [str(Path(sys.executable).with_name("weed")), "-logtostderr", "server", f"-dir={folder}"]
    command += [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    command += ["-volume.max=200", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(process, endpoint, folder / "log")
        yield ObjectStore(
            endpoint,
            {
                "AWS_ENDPOINT": endpoint,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
            },
        )
    finally:
        process.kill()  # its data go with the folder
        process.wait()


def _wait(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            try:
                urllib.request.urlopen(endpoint, timeout=2).close()
                return
            except urllib.error.HTTPError as error:  # it asks who we are, so it answers
                error.close()
                return
        time.sleep(0.05)
    raise RuntimeError(f"no S3 server: {os.linesep.join(log.read_text(errors='replace').splitlines()[-20:])}")
