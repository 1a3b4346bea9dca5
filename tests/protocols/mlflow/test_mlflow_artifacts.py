"""Artifacts through the proxy, by MLflow's own client and by sockets that do not tidy paths up."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry.verify import verify


def test_files_go_up_and_come_back(client: Any, keep: Keep, tmp_path: Path) -> None:
    run = client.create_run("0").info.run_id
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "a é+100%.txt").write_text("hello")
    (tmp_path / "up" / "sub" / "b.bin").write_bytes(os.urandom(3_000_000))
    client.log_artifacts(run, str(tmp_path / "up"), "folder")
    client.log_text(run, "", "empty.txt")
    client.log_text(run, "first", "again.txt")
    client.log_text(run, "second", "again.txt")

    def listed(path: str | None = None) -> list[tuple[str, bool, int | None]]:
        return [(each.path, each.is_dir, each.file_size) for each in client.list_artifacts(run, path)]

    assert listed() == [("again.txt", False, 6), ("empty.txt", False, 0), ("folder", True, None)]
    assert listed("folder") == [("folder/a é+100%.txt", False, 5), ("folder/sub", True, None)]
    assert listed("folder/none") == []
    down = Path(client.download_artifacts(run, "", str(tmp_path)))
    assert (down / "folder" / "a é+100%.txt").read_text() == "hello"
    assert (down / "folder" / "sub" / "b.bin").read_bytes() == (tmp_path / "up" / "sub" / "b.bin").read_bytes()
    assert (down / "again.txt").read_text() == "second"
    assert (down / "empty.txt").read_bytes() == b""
    assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


def test_files_are_handed_out_as_data_and_in_ranges(client: Any, address: str) -> None:
    run = client.create_run("0").info.run_id
    client.log_text(run, "<script>alert(1)</script>", "page.html")
    url = f"{address}/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/page.html"
    whole = httpx.get(url)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-disposition"].startswith("attachment")
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = httpx.get(url, headers={"range": "bytes=8-12"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "alert", "bytes 8-12/25")
    assert httpx.get(f"{address}/get-artifact", params={"run_id": run, "path": "page.html"}).text == whole.text
    assert httpx.delete(url).status_code == 200
    assert httpx.get(url).status_code == 404
    assert httpx.delete(url).status_code == 404


def test_a_file_and_a_folder_never_share_a_name(light: str) -> None:
    run, base = _run(light)
    assert httpx.put(f"{base}/a", content=b"1").status_code == 200
    assert httpx.put(f"{base}/a/b", content=b"2").status_code == 400
    assert httpx.put(f"{base}/c/d", content=b"3").status_code == 200
    assert httpx.put(f"{base}/c", content=b"4").status_code == 400
    said = httpx.get(f"{light}/api/2.0/mlflow/artifacts/list", params={"run_id": run}).json()
    assert [each["path"] for each in said["files"]] == ["a", "c"]


SHAPES = [
    "..",
    "../x",
    "a/../x",
    "a/../../../../../../etc/passwd",
    "%2e%2e/x",
    "%2E%2E%2Fx",
    "%252e%252e/x",
    "%252e%252e%252fx",
    "..%5cx",
    "..\\x",
    "a\\b",
    "%5c%5cserver/share",
    "/etc/passwd",
    "%2fetc/passwd",
    "a//b",
    "a/./b",
    "./a",
    "a/",
    "%00",
    "a%00.txt",
    "a%0a.txt",
    "%20../x",
    ".%2e/x",
    "%ff%fe",
    "a" * 2001,
]


@pytest.mark.parametrize("shape", SHAPES)
def test_paths_that_leave_their_place_are_refused(light: str, shape: str) -> None:
    run, _ = _run(light)
    root = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/"
    for method in ("PUT", "GET", "DELETE"):
        routed = "%0a" in shape and method == "DELETE"
        expected = 404 if routed else 400  # no route of the application takes a line break
        assert _raw(light, method, root + shape) == expected, (method, shape)
    for query in (f"path={shape}", f"path=0/{run}/artifacts/{shape}"):
        assert _raw(light, "GET", f"/api/2.0/mlflow-artifacts/artifacts?{query}") in (400, 404)
    assert _raw(light, "GET", f"/get-artifact?run_id={run}&path={shape}") in (400, 404)
    assert _raw(light, "GET", f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={shape}") in (200, 400)
    said = httpx.get(f"{light}/api/2.0/mlflow/artifacts/list", params={"run_id": run}).json()
    assert said["files"] == []


def test_only_known_roots_take_files(light: str) -> None:
    run, _ = _run(light)
    root = f"{light}/api/2.0/mlflow-artifacts/artifacts"
    for path in ("etc/passwd", "x", f"1/{run}/artifacts/a", f"0/{'0' * 32}/artifacts/a", "packages/x/MLmodel"):
        assert httpx.put(f"{root}/{path}", content=b"x").status_code == 404
    assert httpx.put(f"{root}/0/{run}/artifacts", content=b"x").status_code == 400
    made = httpx.post(
        f"{light}/api/2.0/mlflow/experiments/create", json={"name": "s3", "artifact_location": "s3://bucket/x"}
    ).json()["experiment_id"]
    there = httpx.post(f"{light}/api/2.0/mlflow/runs/create", json={"experiment_id": made}).json()["run"]["info"]
    assert there["artifact_uri"] == f"s3://bucket/x/{there['run_id']}/artifacts"
    answer = httpx.get(f"{light}/api/2.0/mlflow/artifacts/list", params={"run_id": there["run_id"]})
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
    for location in ("mlflow-artifacts:/a/../b", "s3://b/x?y=1", "s3://b/%2e%2e", "mlflow-artifacts:etc"):
        body = {"name": f"n{location}", "artifact_location": location}
        assert httpx.post(f"{light}/api/2.0/mlflow/experiments/create", json=body).status_code == 400


def test_an_upload_cut_short_leaves_nothing(light: str) -> None:
    run, base = _run(light)
    host, port = light.removeprefix("http://").split(":")
    path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/half"
    with socket.create_connection((host, int(port))) as conn:
        head = f"PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\n\r\n"
        conn.sendall(head.encode() + b"x" * 4_000_000)
    assert httpx.get(f"{base}/half").status_code == 404


def test_a_large_file_streams_both_ways(light: str) -> None:
    _, base = _run(light)
    block = os.urandom(1 << 20)
    sent = hashlib.sha256()

    def parts() -> Any:
        for _ in range(64):
            sent.update(block)
            yield block

    assert httpx.put(f"{base}/big", content=parts(), timeout=60).status_code == 200
    got = hashlib.sha256()
    with httpx.stream("GET", f"{base}/big", timeout=60) as answer:
        for part in answer.iter_bytes():
            got.update(part)
    assert got.digest() == sent.digest()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.usefixtures("quick_python")
def test_log_model_and_autolog_and_loading_back(light: str) -> None:
    import mlflow
    from sklearn.linear_model import LogisticRegression

    chance = np.random.default_rng(0)
    x = chance.normal(size=(200, 3))
    y = (x[:, 0] > 0).astype(int)
    mlflow.set_tracking_uri(light)
    mlflow.set_registry_uri(light)
    mlflow.set_experiment("sk")
    model = LogisticRegression().fit(x, y)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name="sk",
            input_example=x[:2],
            serialization_format="skops",
            pip_requirements=["scikit-learn"],  # autolog below finds them out itself, in seconds
        )
    mlflow.MlflowClient().set_registered_model_alias("sk", "champion", 1)
    for uri in (info.model_uri, "models:/sk@champion", "models:/sk/1"):
        assert (mlflow.pyfunc.load_model(uri).predict(x) == model.predict(x)).all()
    mlflow.sklearn.autolog(serialization_format="skops")
    try:
        with mlflow.start_run() as run:
            LogisticRegression(C=0.5).fit(x, y)
    finally:
        mlflow.sklearn.autolog(disable=True)
    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["C"] == "0.5"
    assert found.data.metrics["training_accuracy_score"] > 0.9
    assert found.inputs.dataset_inputs
    assert found.outputs.model_outputs


def _run(address: str) -> tuple[str, str]:
    made = httpx.post(f"{address}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).json()
    run = made["run"]["info"]["run_id"]
    return run, f"{address}/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts"


def _raw(address: str, method: str, target: str) -> int:
    """The status of a request whose target is sent as it is."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as conn:
        body = "Content-Length: 1\r\n\r\nx" if method == "PUT" else "\r\n"
        conn.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{body}".encode())
        return int(conn.makefile("rb").readline().split()[1])
