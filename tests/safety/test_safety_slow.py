"""Clients that are slow on purpose, or send without end: let go at the control server, by every path into it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from safety_site import Site, site

from modelkeep.serve import connection


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that waits for fractions of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEAD_SECONDS", 0.4)
        patch.setattr(connection, "BODY_SECONDS", 0.4)
        patch.setattr(connection, "SWEEP", 0.1)
        with site(tmp_path_factory.mktemp("site")) as found:
            yield found


def connect(here: Site) -> socket.socket:
    url = httpx.URL(here.address)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def dripped(conn: socket.socket, drip: bytes) -> bytes:
    """What the server says to a client that sends one byte now and then, until it hangs up."""
    conn.settimeout(0.1)
    said = b""
    for at in range(200):
        try:
            conn.sendall(drip[at % len(drip) :][:1])
            said += (part := conn.recv(4096))
            if not part:
                return said
        except TimeoutError:
            continue
        except OSError:
            return said
    raise AssertionError("the server still waits")


def head(here: Site, method: str, path: str, *lines: str) -> bytes:
    token = f"authorization: Bearer {here.tokens['root']}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: 127.0.0.1", token, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx-", b"POST /api/2.0/mlflow/runs/create HTTP/1.1\r\n"]
)
def test_a_head_that_never_ends(impatient: Site, begun: bytes) -> None:
    with connect(impatient) as conn:
        conn.sendall(begun or b"G")
        said = dripped(conn, b"a")
    assert said == b"" or said.split(b" ")[1] in (b"408", b"400")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/2.0/mlflow/runs/create"),
        ("POST", "/api/modelkeep/labels"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/y"),
        ("POST", "/sign-in"),
        ("POST", "/v1/traces"),
    ],
)
@pytest.mark.parametrize("length", ["content-length: 1000000", "transfer-encoding: chunked"])
def test_a_body_that_never_ends(impatient: Site, method: str, path: str, length: str) -> None:
    with connect(impatient) as conn:
        conn.sendall(head(impatient, method, path, length, "content-type: application/json"))
        drip = b"1\r\na\r\n" if "chunked" in length else b"a"
        said = dripped(conn, drip)
    assert said == b"" or said.split(b" ")[1].startswith(b"4"), said[:200]
    assert impatient.ask("root", "GET", "/health").status_code == 200


def test_a_large_file_may_take_its_time(impatient: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOWEST", 1000)
    run = impatient.mlflow("root", "POST", "runs/create", experiment_id="0").json()["run"]["info"]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{run['artifact_uri'].removeprefix('mlflow-artifacts:/')}/big"
    with connect(impatient) as conn:
        conn.sendall(head(impatient, "PUT", path, "content-length: 12000"))
        for _ in range(12):  # 1.2 s in all, three times the patience
            conn.sendall(b"x" * 1000)
            time.sleep(0.1)
        assert conn.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_not_kept_in_memory(place_of_all: Site) -> None:
    with connect(place_of_all) as conn:
        conn.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        said = b""
        try:
            for number in range(200):
                conn.sendall(b"x-%d: " % number + b"a" * 4096 + b"\r\n")
            said = conn.recv(4096)
        except OSError:
            pass
    assert said == b"" or said.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("path", "size"),
    [("/api/2.0/mlflow/runs/create", 33 << 20), ("/api/modelkeep/labels", 65 << 20), ("/sign-in", 1 << 20)],
)
def test_bodies_have_a_largest_size(place_of_all: Site, path: str, size: int) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(size >> 20):
            yield b" " * (1 << 20)

    headers = {"authorization": f"Bearer {place_of_all.tokens['root']}"}
    try:
        answer = httpx.post(place_of_all.address + path, content=body(), headers=headers, timeout=30)
        assert 400 <= answer.status_code < 500
    except httpx.TransportError:
        pass  # hung up on while sending
    assert place_of_all.ask("root", "GET", "/health").status_code == 200


def test_strangers_are_turned_away_before_their_bodies(place_of_all: Site) -> None:
    """Whoever is not known cannot make the server take in what they send."""
    for path in ("/api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/y", "/api/modelkeep/labels"):
        with connect(place_of_all) as conn:
            line = f"PUT {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000000000\r\n\r\n"
            conn.sendall(line.encode())
            assert conn.recv(4096).startswith(b"HTTP/1.1 401")
    assert not list(Path(place_of_all.keep.home / "blobs").rglob("*.tmp"))
