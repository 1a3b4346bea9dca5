"""No path of a client is resolved here: each shape at each entrance is refused with a 4xx and changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from safety_site import Site
from sqlalchemy import func, select

from modelkeep.store import tables

SHAPES = {
    "file URI": "file:///etc/passwd",
    "file URI, other case": "FiLe:/etc/passwd",
    "file URI with host": "file://localhost/etc/passwd",
    "absolute": "/etc/passwd",
    "two slashes": "//etc/passwd",
    "UNC": "\\\\server\\share\\x",
    "UNC, slashes": "//server/share/../x",
    "drive": "C:\\windows\\x",
    "drive, slash": "C:/windows/x",
    "climbing": "../../etc/passwd",
    "climbing inside": "a/../../b",
    "climbing at the end": "a/..",
    "backslash": "..\\..\\x",
    "backslash inside": "a\\..\\b",
    "encoded": "%2e%2e/%2e%2e/etc/passwd",
    "half encoded": ".%2e/x",
    "encoded slash": "..%2f..%2fx",
    "encoded backslash": "..%5cx",
    "encoded twice": "%252e%252e%252fx",
    "encoded thrice": "%25252e%25252e/x",
    "semicolon": "a;/../b",
    "fragment": "http://host/a#/../../b",
    "query": "http://host/a?x=/../../etc",
    "fragment climbing": "a#/../b",
    "empty scheme": ":/etc/passwd",
    "empty scheme, slashes": "://etc/passwd",
    "null": "a\x00/etc/passwd",
    "encoded null": "a%00b",
    "newline": "a\n/etc/passwd",
    "overlong dot": "%c0%ae%c0%ae/x",
    "fullwidth dots": "\uff0e\uff0e/x/..",
    "dot": "a/./b/../..",
    "database": "sqlite:///../../x.db",
    "nested scheme": "mlflow-artifacts:/../../../etc/passwd",
    "runs climbing": "runs:/../../../etc/passwd",
    "models climbing": "models:/../../../etc/passwd",
    "very long": "a/" * 3000 + "../x",
}

Ask = Callable[[Site, str, dict[str, str]], httpx.Response]


def _mlflow(method: str, path: str, field: str, **more: str) -> Ask:
    def ask(here: Site, shape: str, made: dict[str, str]) -> httpx.Response:
        body = {key: made.get(value, value) for key, value in more.items()}
        return here.mlflow("root", method, path, **body, **{field: shape})

    return ask


def _query(path: str, field: str, **more: str) -> Ask:
    def ask(here: Site, shape: str, made: dict[str, str]) -> httpx.Response:
        body = {key: made.get(value, value) for key, value in more.items()}
        return here.ask("root", "GET", path, params={**body, field: shape})

    return ask


def _raw(here: Site, method: str, target: str, body: bytes = b"") -> httpx.Response:
    """A request whose target is sent as it stands: clients' libraries would tidy it."""
    url = httpx.URL(here.address)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as conn:
        head = f"{method} {target} HTTP/1.1\r\nhost: {url.host}:{url.port}\r\nconnection: close\r\n"
        head += f"authorization: Bearer {here.tokens['root']}\r\ncontent-length: {len(body)}\r\n\r\n"
        conn.sendall(head.encode("utf-8", "surrogateescape") + body)
        said = b""
        while part := conn.recv(65536):
            said += part
    status = int(said.split(b" ", 2)[1]) if said.startswith(b"HTTP/") else 400
    return httpx.Response(status, content=said.partition(b"\r\n\r\n")[2])


def _sent(shape: str) -> str:
    """A shape in a request's target: what a target cannot hold is escaped, once; escapes stay as they are."""
    return quote(shape, safe="/%:;?#\\.@!$&'()*+,=")


def _proxy(method: str) -> Ask:
    def ask(here: Site, shape: str, made: dict[str, str]) -> httpx.Response:
        target = f"/api/2.0/mlflow-artifacts/artifacts/{made['files']}/{_sent(shape)}"
        return _raw(here, method, target, b"evil" if method == "PUT" else b"")

    return ask


def _parts(here: Site, shape: str, made: dict[str, str]) -> httpx.Response:
    where = f"/api/2.0/mlflow-artifacts/mpu/create/{made['files']}/{quote(shape, safe='')}"
    return here.ask("root", "POST", where, json={"path": "x", "num_parts": 1})


ENTRANCES: dict[str, Ask] = {
    "presigned upload": lambda here, shape, made: here.ask(
        "root",
        "POST",
        "/api/2.0/mlflow/artifacts/presigned-upload-url",
        json={"run_id": made["run"], "path": shape},
    ),
    "presigned download": lambda here, shape, made: here.ask(
        "root",
        "POST",
        "/api/2.0/mlflow/artifacts/presigned-download-url",
        json={"run_id": made["run"], "path": shape},
    ),
    "create experiment": lambda here, shape, made: here.mlflow(
        "root", "POST", "experiments/create", name=f"e{hash(shape)}", artifact_location=shape
    ),
    "create version": _mlflow("POST", "model-versions/create", "source", name="model"),
    "create version of a run": _mlflow("POST", "model-versions/create", "source", name="model", run_id="run"),
    "create version of a logged model": _mlflow(
        "POST", "model-versions/create", "source", name="model", model_id="logged"
    ),
    "get-artifact of a run": _query("/get-artifact", "path", run_id="run"),
    "get-artifact of a logged model": _query("/get-artifact", "path", model_id="logged"),
    "get-artifact of a version": _query("/model-versions/get-artifact", "path", name="model", version="1"),
    "list a run": _query("/api/2.0/mlflow/artifacts/list", "path", run_id="run"),
    "list through the proxy": _query("/api/2.0/mlflow-artifacts/artifacts", "path"),
    "upload": _proxy("PUT"),
    "download": _proxy("GET"),
    "delete": _proxy("DELETE"),
    "upload in parts": _parts,
    "a run's id": _mlflow("GET", "runs/get", "run_id"),
    "a run to log to": _mlflow("POST", "runs/log-param", "run_id", key="k", value="v"),
    "a metric's name": _mlflow("POST", "runs/log-metric", "key", run_id="run", value="1", timestamp="1"),
    "a model's name": _mlflow("POST", "registered-models/create", "name"),
    "a model to get": _mlflow("GET", "registered-models/get", "name"),
    "an alias": _mlflow("POST", "registered-models/alias", "alias", name="model", version="1"),
    "an experiment's id": _mlflow("GET", "experiments/get", "experiment_id"),
    "a logged model's name": _mlflow("POST", "logged-models", "name", experiment_id="0"),
    "a page": lambda here, shape, made: _raw(here, "GET", f"/models/{_sent(shape)}"),
    "a page's version": lambda here, shape, made: _raw(here, "GET", f"/models/model/{_sent(shape)}"),
    "a static file": lambda here, shape, made: _raw(here, "GET", f"/static/{_sent(shape)}"),
    "the control API": lambda here, shape, made: _raw(
        here, "GET", f"/api/modelkeep/models/{_sent(shape)}/versions/1"
    ),
    "the control API, version": lambda here, shape, made: _raw(
        here, "GET", f"/api/modelkeep/models/model/versions/{_sent(shape)}"
    ),
    "the root": lambda here, shape, made: _raw(here, "GET", f"/{_sent(shape)}"),
}

NAMES = {"a metric's name": {"file URI, other case", "drive, slash", "empty scheme", "overlong dot"}}
"""What MLflow allows there: names with slashes and colons, which are never paths here."""


@pytest.fixture(scope="module")
def made(place_of_all: Site) -> dict[str, str]:
    here = place_of_all
    run = here.mlflow("root", "POST", "runs/create", experiment_id="0").json()["run"]["info"]
    logged = here.mlflow("root", "POST", "logged-models", experiment_id="0", name="m").json()["model"]["info"]
    here.mlflow("root", "POST", "registered-models/create", name="model")
    files = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    assert (
        here.ask("root", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{files}/kept", content=b"kept").status_code
        == 200
    )
    said = {"run_id": run["run_id"], "source": f"runs:/{run['run_id']}/kept"}
    source = here.mlflow("root", "POST", "model-versions/create", name="model", **said)
    assert source.status_code == 200, source.text
    return {"run": run["run_id"], "logged": logged["model_id"], "files": files}


def state(here: Site) -> tuple[Any, ...]:
    """How many rows each table has, and every file below the home's folder."""
    with here.keep.db.read() as conn:
        counts = {
            table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables.metadata.sorted_tables
        }
    home = here.keep.home
    files = sorted(
        str(path.relative_to(home)) for path in home.rglob("*") if path.suffix not in (".db-wal", ".db-shm")
    )
    return counts, files, sorted(path.name for path in home.parent.iterdir())


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_shapes_are_refused_everywhere(place_of_all: Site, made: dict[str, str], entrance: str) -> None:
    before = state(place_of_all)
    wrong = {}
    for name, shape in SHAPES.items():
        answer = ENTRANCES[entrance](place_of_all, shape, made)
        if not 400 <= answer.status_code < 500 and name not in NAMES.get(entrance, ()):
            wrong[name] = (answer.status_code, answer.text[:200])
        assert b"root:x:0" not in answer.content, name
        assert b"[boot loader]" not in answer.content
    assert wrong == {}
    if entrance not in NAMES:
        assert state(place_of_all) == before


def test_the_good_still_works(place_of_all: Site, made: dict[str, str]) -> None:
    root = f"/api/2.0/mlflow-artifacts/artifacts/{made['files']}"
    for name in (
        "plain.txt",
        "a/b c/d.txt",
        "ünï/cödé.txt",
        "100%25.txt".replace("%25", ""),
        "a..b",
        "..a",
        "a...",
        "#hash",
    ):
        path = f"{root}/{quote(name)}"
        assert place_of_all.ask("root", "PUT", path, content=b"good").status_code == 200, name
        assert place_of_all.ask("root", "GET", path).content == b"good"
        assert place_of_all.ask("root", "DELETE", path).status_code == 200


def test_a_link_in_the_store_leads_nowhere(place_of_all: Site, made: dict[str, str], tmp_path: Path) -> None:
    """Names are keys of a table: a link that somebody puts into the folder is not what they name."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    blobs = place_of_all.keep.home / "blobs"
    for name in ("link", "0"):
        (blobs / name).symlink_to(secret)
    try:
        for path in ("link", "0", f"{made['files']}/link", "packages/link"):
            answer = place_of_all.ask("root", "GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}")
            assert answer.status_code == 404 and b"secret" not in answer.content
    finally:
        for name in ("link", "0"):
            (blobs / name).unlink()


@pytest.mark.parametrize(
    "source", ["file:///etc", "/etc", "../x", "runs:/nothing/../../etc", "dummy", "http://169.254.169.254/x?y"]
)
def test_tags_do_not_turn_the_checks_off(place_of_all: Site, made: dict[str, str], source: str) -> None:
    """The peer let prompts pass its checks, and a tag made anything a prompt."""
    for key in ("mlflow.prompt.is_prompt", "mlflow.prompt.text", "prompt"):
        tags = [{"key": key, "value": "true"}]
        body = {"name": "model", "source": source, "tags": tags}
        answer = place_of_all.mlflow("root", "POST", "model-versions/create", **body)
        if answer.status_code == 200:  # a prompt's source is text that is handed back and never opened
            version = answer.json()["model_version"]["version"]
            params = {"name": "model", "version": version, "path": "passwd"}
            got = place_of_all.ask("root", "GET", "/model-versions/get-artifact", params=params)
            assert 400 <= got.status_code < 500 and b"root:x:0" not in got.content
        else:
            assert 400 <= answer.status_code < 500


def test_a_source_elsewhere_is_never_fetched(place_of_all: Site, made: dict[str, str]) -> None:
    """A version may be somewhere else; this server neither asks there nor hands out what it says."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.3)
        port = listening.getsockname()[1]
        for source in (f"http://127.0.0.1:{port}/x", f"s3://127.0.0.1:{port}/x", f"hdfs://127.0.0.1:{port}/x"):
            answer = place_of_all.mlflow("root", "POST", "model-versions/create", name="model", source=source)
            assert answer.status_code == 200, answer.text
            version = answer.json()["model_version"]["version"]
            params = {"name": "model", "version": version, "path": "MLmodel"}
            assert (
                place_of_all.ask("root", "GET", "/model-versions/get-artifact", params=params).status_code == 403
            )
        with pytest.raises(TimeoutError):
            listening.accept()
