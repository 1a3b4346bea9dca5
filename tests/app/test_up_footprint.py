"""What the control process holds before anybody has asked for a page or has a model served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from small import until

LARGE = "alembic duckdb numpy onnx onnxruntime pandas plotly psycopg pyarrow scipy sklearn"

CODE = f"""
import sys, threading
from modelkeep.cli.main import main

def look():
    sys.stdin.readline()
    print([name for name in {LARGE.split()!r} if name in sys.modules], file=sys.stderr, flush=True)

threading.Thread(target=look, daemon=True).start()
sys.argv = ["modelkeep", "up", "--port", "0", "--no-serve", "--json"]
main()
"""


def test_at_rest_control_has_imported_nothing_large_and_answers(tmp_path: Path) -> None:
    env = {**os.environ, "MODELKEEP_HOME": str(tmp_path / "home")}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as up:
        assert up.stdin is not None
        assert up.stdout is not None
        assert up.stderr is not None
        try:
            address = json.loads(up.stdout.readline())["control"]
            assert httpx.get(f"{address}/health").text == "OK"
            made = httpx.post(f"{address}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
            assert made.status_code == 200
            up.stdin.write("look\n")
            up.stdin.flush()
            assert up.stderr.readline().strip() == "[]"
            until(lambda: httpx.get(f"{address}/api/modelkeep/status").json()["loop"]["ticks"] > 3)
        finally:
            up.send_signal(signal.SIGTERM)
            assert up.wait(20) == 0
