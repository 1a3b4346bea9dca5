"""Presigned URLs, by MLflow's own client and by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelkeep.lifecycle.keep import Keep

API = "/api/2.0"


def made(address: str) -> str:
    """A run's id."""
    said = httpx.post(f"{address}{API}/mlflow/runs/create", json={"experiment_id": "0"}).json()
    return str(said["run"]["info"]["run_id"])


def asked(address: str, what: str, **said: Any) -> httpx.Response:
    return httpx.post(f"{address}{API}/mlflow/artifacts/presigned-{what}-url", json=said)


def test_the_client_downloads_through_them(
    client: Any, keep: Keep, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", str(1 << 20))
    run = client.create_run("0").info.run_id
    file = tmp_path / "weights é.bin"
    file.write_bytes(os.urandom(3 * (1 << 20) + 17))
    client.log_artifact(run, str(file), "a b")
    down = Path(client.download_artifacts(run, "a b/weights é.bin", str(tmp_path / "down")))
    assert down.read_bytes() == file.read_bytes()
    found = httpx.get(
        f"{address}{API}/mlflow-artifacts/presigned/0/{run}/artifacts/a%20b/weights%20%C3%A9.bin"
    ).json()
    assert found["file_size"] == file.stat().st_size
    part = httpx.get(found["url"], headers={**found["headers"], "range": "bytes=5-14"})
    assert (part.status_code, part.content) == (206, file.read_bytes()[5:15])


def test_one_is_for_one_file_one_way_and_a_while(light: str) -> None:
    run = made(light)
    up = asked(light, "upload", run_id=run, path="x/y.bin").json()
    assert httpx.get(up["presigned_url"]).status_code == 400
    assert httpx.put(up["presigned_url"], content=b"bytes", headers=up["headers"]).status_code == 200
    down = asked(light, "download", run_id=run, path="x/y.bin", expiration=60).json()
    assert down["file_size"] == 5
    assert httpx.get(down["presigned_url"]).content == b"bytes"
    for wrong in (
        httpx.put(down["presigned_url"], content=b"other"),
        httpx.get(down["presigned_url"].replace("signed/", "signed/A")),
        httpx.get(f"{light}{API}/mlflow-artifacts/signed/made.up/x"),
        httpx.post(down["presigned_url"]),
        asked(light, "download", run_id=run, path="none"),
        asked(light, "download", run_id="none", path="x"),
        asked(light, "download", run_id=run, path="../x"),
        asked(light, "download", run_id=run, path="x/y.bin", expiration=0),
        asked(light, "download", run_id=run, path="x/y.bin", expiration=604_801),
        asked(light, "download", run_id=run),
        asked(light, "download", path="x/y.bin"),
        asked(light, "upload", run_id=run, model_id="m", path="x"),
        *(
            httpx.put(asked(light, "upload", run_id=run, path=path).json()["presigned_url"], content=b"no place")
            for path in ("x", "x/y.bin/z")
        ),
        httpx.get(f"{light}{API}/mlflow/artifacts/presigned-upload-url"),
        httpx.get(f"{light}{API}/mlflow-artifacts/presigned/0/{run}/artifacts/none"),
        httpx.get(f"{light}{API}/mlflow-artifacts/presigned"),
    ):
        assert 400 <= wrong.status_code < 500, (wrong.request.url, wrong.text)
    assert httpx.get(down["presigned_url"]).content == b"bytes"


def test_a_logged_models_file_is_uploaded(light: str) -> None:
    said = httpx.post(f"{light}{API}/mlflow/logged-models", json={"experiment_id": "0", "name": "m"}).json()
    model = said["model"]["info"]["model_id"]
    up = asked(light, "upload", model_id=model, path="MLmodel").json()
    assert httpx.put(up["presigned_url"], content=b"flavors: {}").status_code == 200
    found = httpx.get(f"{light}{API}/mlflow/logged-models/{model}/artifacts/directories").json()
    assert [(each["path"], each["file_size"]) for each in found["files"]] == [("MLmodel", 11)]


def test_what_is_sealed_for_one_purpose_serves_no_other(light: str) -> None:
    run = made(light)
    up = asked(light, "upload", run_id=run, path="x.bin").json()["presigned_url"]
    assert httpx.put(up, content=b"bytes").status_code == 200
    down = asked(light, "download", run_id=run, path="x.bin").json()["presigned_url"]
    root = f"{light}{API}/mlflow-artifacts"
    folder = f"0/{run}/artifacts"
    begun = httpx.post(f"{root}/mpu/create/{folder}", json={"path": "y.bin", "num_parts": 1}).json()
    for link in (up, down):
        token = link.partition("/signed/")[2].partition("/")[0]
        assert httpx.put(f"{root}/mpu/part/{token}/1", content=b"more").status_code == 400
        said = {"path": "y.bin", "upload_id": token, "parts": []}
        assert httpx.post(f"{root}/mpu/complete/{folder}", json=said).status_code == 400
    assert httpx.get(f"{root}/signed/{begun['upload_id']}/y.bin").status_code == 400
    assert httpx.put(f"{root}/signed/{begun['upload_id']}/y.bin", content=b"z").status_code == 400
    put = httpx.put(begun["credentials"][0]["url"], content=b"right")
    said = {
        "path": "y.bin",
        "upload_id": begun["upload_id"],
        "parts": [{"part_number": 1, "etag": put.headers["etag"], "url": ""}],
    }
    assert httpx.post(f"{root}/mpu/complete/{folder}", json=said).status_code == 200
