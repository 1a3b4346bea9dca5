"""The peers: each in an environment of its own, made when it is first needed, each serving the same model files.

Every server runs as its own documentation starts it, with one worker process, pinned to the server's core.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn

from benchmarks.proc import resident
from benchmarks.serving import generator
from benchmarks.serving.generator import BUILD, SERVER_CORE, pinned
from benchmarks.serving.models import Case
from benchmarks.serving.ours import Served

HERE = Path(__file__).parent
SKLEARN = f"scikit-learn=={sklearn.__version__}"


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        packages: What its environment holds.
        command: Arguments after the environment's Python, given folder of the model and port.
        path, body: Where requests go and what they hold.
        read: The probabilities or labels of an answer, rows by columns.
        environment: Variables, given the port.
    """

    name: str
    packages: Sequence[str]
    command: Callable[[Path, int], list[str]]
    path: str
    body: Callable[[Case, Sequence[int]], bytes]
    read: Callable[[dict[str, Any]], Any]
    environment: Callable[[int], dict[str, str]] = lambda port: {}

    def request(self, case: Case, rows: Sequence[int]) -> bytes:
        """A raw request for these rows."""
        return generator.post(self.path, self.body(case, rows))


def _script(name: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, port: [str(HERE / "peer_servers" / name), str(folder), str(port)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "fastapi",
            ("fastapi", "uvicorn[standard]", "onnxruntime"),
            _script("fastapi_onnx.py"),
            "/predict",
            Case.lists,
            lambda answer: answer["probability"],
        ),
        Peer(
            "mlserver",
            ("mlserver", "mlserver-sklearn", SKLEARN),
            lambda folder, port: ["-m", "mlserver.cli.main", "start", str(_mlserver(folder, port))],
            "/v2/models/bench/infer",
            lambda case, rows: case.tensor(rows, outputs=["predict_proba"]),
            lambda answer: answer["outputs"][0]["data"],
        ),
        Peer(
            "mlflow",
            ("mlflow", SKLEARN, "pandas"),
            lambda folder, port: [
                *("-m", "mlflow", "models", "serve", "-m", str(folder / "mlflow"), "--env-manager", "local"),
                *("--workers", "1", "--port", str(port)),
            ],
            "/invocations",
            Case.records,
            lambda answer: answer["predictions"],
            lambda port: {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"},
        ),
        Peer(
            "bentoml",
            ("bentoml", SKLEARN),
            lambda folder, port: [
                *("-m", "bentoml", "serve", "bento_service:Bench", "--port", str(port)),
                *("--working-dir", str(HERE / "peer_servers")),
            ],
            "/predict",
            Case.lists,
            lambda answer: answer,
        ),
        Peer(
            "litserve",
            ("litserve", SKLEARN),
            _script("litserve_server.py"),
            "/predict",
            Case.lists,
            lambda answer: answer["probability"],
        ),
    )
}


def _mlserver(folder: Path, port: int) -> Path:
    """MLServer's own settings files."""
    made = folder / "mlserver"
    made.mkdir(exist_ok=True)
    settings = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "parallel_workers": 0}
    (made / "settings.json").write_text(json.dumps({**settings, "host": "127.0.0.1", "debug": False}))
    model = {
        "name": "bench",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(folder / "model.joblib")},
    }
    (made / "model-settings.json").write_text(json.dumps(model))
    return made


def environment(peer: Peer) -> Path:
    """The Python of the peer's own environment. Ends the program when it cannot be made."""
    folder = BUILD / "peers" / peer.name
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        print(f"  making the environment of {peer.name}", file=sys.stderr)
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *peer.packages], check=True)
        (folder / "whole").touch()
    return python


@contextmanager
def serving(peer: Peer, case: Case, folder: Path) -> Iterator[Served]:
    """The peer, serving the files in ``folder``, once it answers as scikit-learn does."""
    python = environment(peer)
    if peer.name == "mlflow" and not (folder / "mlflow").exists():
        subprocess.run([str(python), str(HERE / "peer_servers" / "save_mlflow.py"), str(folder)], check=True)
    port = _free()
    variables = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "BENCH_MODEL": str(folder)}
    log = folder / f"{peer.name}.log"
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(SERVER_CORE, [str(python), *peer.command(folder, port)]),
            stdout=output,
            stderr=output,
            env={**variables, **peer.environment(port)},
            cwd=folder,
            start_new_session=True,
        )
    try:
        _until(peer, case, port, process, log)
        yield Served(port, [process.pid], time.perf_counter() - began, resident(process.pid))
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with all its workers: one that lingers would take the core from whoever is measured next."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask(port: int, path: str, body: bytes) -> dict[str, Any]:
    """One request by an ordinary client."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body, {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _until(peer: Peer, case: Case, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            ask(port, peer.path, peer.body(case, [0]))
            return
        except (OSError, ValueError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code not in (404, 503)
            if refused or process.poll() is not None or time.monotonic() > end:
                told = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
                raise RuntimeError(f"{peer.name}: {error} {told[:500]} {log.read_text()[-1500:]}") from error
        time.sleep(0.02)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NGINX = """
daemon off; worker_processes 1; error_log stderr error; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{ default_type application/json; return 200 '{body}'; }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, body: bytes) -> Iterator[Served | None]:
    """nginx with the same bytes for every request: what the transport allows. None where it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        yield None
        return
    port = _free()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, body=body.decode()))
    process = subprocess.Popen(pinned(SERVER_CORE, [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]))
    try:
        began = time.monotonic()
        while time.monotonic() < began + 10:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield Served(port, [process.pid], time.monotonic() - began, resident(process.pid))
    finally:
        process.terminate()
        process.wait(10)
