"""Object stores that throttle, fail or fall silent: tried again within limits, and then said so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modelkeep.core.errors import Invalid, Unavailable
from modelkeep.store import objects
from modelkeep.store.blobs import open_blobs
from modelkeep.store.places import open_bytes

SLOW = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)


class Bucket:
    """As much of S3 as one object needs, and faults as asked for."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.requests = 0
        self.throttled = 0  # so many requests are refused first
        self.silent = 0.0  # seconds before an answer
        self.lock = threading.Lock()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.send_header("etag", '"1"')
                self.send_header("last-modified", "Thu, 26 Nov 2026 03:00:00 GMT")
                self.end_headers()
                self.wfile.write(body)

            def _refused(self) -> bool:
                with bucket.lock:
                    bucket.requests += 1
                    refused = bucket.throttled > 0
                    bucket.throttled -= refused
                if refused:
                    self._answer(503, SLOW)
                elif bucket.silent:
                    time.sleep(bucket.silent)
                return refused

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self._refused():
                    return
                with bucket.lock:
                    there = self.path in bucket.held
                    if self.headers.get("if-none-match") == "*" and there:
                        self._answer(412)
                        return
                    bucket.held[self.path] = body
                self._answer(200)

            def do_GET(self) -> None:
                if not self._refused():
                    found = bucket.held.get(self.path)
                    self._answer(404 if found is None else 200, found or b"")

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    made = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), made.handler())
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield made
    server.shutdown()
    server.server_close()


def test_a_throttling_store_is_asked_again(bucket: Bucket) -> None:
    bucket.throttled = 2
    store = open_bytes("s3://b")
    batch = store.batch()
    batch.add("chunks/aa/bb", [b"bytes"])
    batch.seal()
    assert bucket.throttled == 0
    bucket.throttled = 1
    assert store.get("chunks/aa/bb") == b"bytes"


@pytest.mark.parametrize(
    ("fault", "said"),
    [({"throttled": 10**6}, "is throttling"), ({"silent": 3.0}, "does not answer within 1 seconds")],
)
def test_a_store_that_does_not_come_back_is_named(
    bucket: Bucket, fault: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELKEEP_STORE_TIMEOUT", "1")
    store = open_bytes("s3://b")
    for name, value in fault.items():
        setattr(bucket, name, value)
    for work in (lambda: store.get("a"), lambda: written(store)):  # type: Callable[[], object]
        bucket.requests = 0
        with pytest.raises(Unavailable, match=said) as told:
            work()
        assert "MODELKEEP_STORE_TIMEOUT" in told.value.hint
        assert 1 <= bucket.requests <= 15


def written(store) -> None:
    batch = store.batch()
    batch.add("a", [b"x"])
    batch.seal()


def test_the_limit_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_STORE_TIMEOUT", "soon")
    with pytest.raises(Invalid, match="no number of seconds"):
        open_bytes("s3://b")


def test_of_two_writers_of_one_name_one_writes(s3: str) -> None:
    root, _, prefix = s3.rpartition("/")
    store = objects.open_store(root)
    start = threading.Barrier(6)

    def write(number: int) -> bool:
        start.wait()
        return objects.put(store, root, f"{prefix}/name", bytes([number]) * 50_000)

    with ThreadPoolExecutor(6) as pool:
        wrote = list(pool.map(write, range(6)))
    assert sum(wrote) == 1
    import obstore

    held = bytes(obstore.get(store, f"{prefix}/name").bytes())
    assert held == bytes([wrote.index(True)]) * 50_000


def test_what_is_half_written_is_never_seen(s3: str) -> None:
    """A blob's listing shows only when all its chunks are there: a writer that stops leaves nothing to read."""
    blobs = open_blobs(s3)

    class Ends:
        def __init__(self) -> None:
            self.left = 3

        def read(self, size: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk it came from is gone")
            return bytes(size)

    with pytest.raises(OSError, match="is gone"):
        blobs.put(Ends())
    assert list(blobs.digests()) == []
