"""Uploads in parts, by MLflow's own client and by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry.verify import verify


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1000")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(1 << 20))


def test_the_client_uploads_in_parts(client: Any, keep: Keep, in_parts: None, tmp_path: Path) -> None:
    run = client.create_run("0").info.run_id
    file = tmp_path / "weights é.bin"
    file.write_bytes(os.urandom(5 * (1 << 20) + 17))
    client.log_artifact(run, str(file))
    client.log_artifact(run, str(file), "sub/folder")
    down = Path(client.download_artifacts(run, "sub/folder/weights é.bin", str(tmp_path)))
    assert down.read_bytes() == file.read_bytes()
    assert [each.file_size for each in client.list_artifacts(run) if not each.is_dir] == [file.stat().st_size]
    assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


def test_an_upload_by_hand(light: str) -> None:
    root = f"{light}/api/2.0"
    made = httpx.post(f"{root}/mlflow/runs/create", json={"experiment_id": "0"}).json()
    path = f"0/{made['run']['info']['run_id']}/artifacts"
    mpu = f"{root}/mlflow-artifacts/mpu"
    begun = httpx.post(f"{mpu}/create/{path}", json={"path": "/home/me/x.bin", "num_parts": 2}).json()
    tags = [httpx.put(one["url"], content=b"a" * 10).headers["etag"] for one in begun["credentials"]]
    said = {"path": "x.bin", "upload_id": begun["upload_id"]}
    parts = [{"part_number": at + 1, "etag": tag} for at, tag in enumerate(tags)]

    def complete(parts: list[dict[str, Any]], **other: str) -> httpx.Response:
        return httpx.post(f"{mpu}/complete/{path}", json={**said, **other, "parts": parts})

    for wrong in (
        complete([]),
        complete(parts[1:]),
        complete([parts[0], {**parts[1], "etag": parts[0]["etag"]}]),
        complete([parts[0], {**parts[1], "etag": "0" * 64 + "-10-" + "0" * 32}]),
        complete(parts, path="other.bin"),
        complete(parts, upload_id="made.up"),
        complete(parts, upload_id=begun["upload_id"][:-1]),
        httpx.post(f"{mpu}/create/{path}", json={"path": "..", "num_parts": 1}),
        httpx.post(f"{mpu}/create/{path}", json={"path": "x", "num_parts": 0}),
        httpx.post(f"{mpu}/create/{path}", json={"path": "x", "num_parts": 10**9}),
        httpx.post(f"{mpu}/create/0/none/artifacts", json={"path": "x", "num_parts": 1}),
        httpx.post(f"{mpu}/create/{path}", content=b"{"),
        httpx.put(f"{mpu}/part/made.up/1", content=b"x"),
    ):
        assert 400 <= wrong.status_code < 500, (wrong.request.url, wrong.text)
    there = f"{root}/mlflow-artifacts/artifacts/{path}/x.bin"
    assert httpx.get(there).status_code == 404
    assert complete(parts).status_code == 200
    assert httpx.get(there).content == b"a" * 20
    assert httpx.post(f"{mpu}/abort/{path}", json=said).status_code == 200
