from __future__ import annotations

import importlib.util
import io
import os
import random
import resource
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from modelkeep.core.errors import Damaged, Invalid, NotFound, Unavailable
from modelkeep.store.blobs import Blobs, open_blobs, put_tree, read_files, read_tree, verify_all

_spec = importlib.util.spec_from_file_location(
    "conformance_blobs", Path(__file__).parents[1] / "conformance" / "blobs.py"
)
assert _spec and _spec.loader
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)
content = suite.content


class TestFolder(suite.BlobStoreSuite):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return open_blobs(str(tmp_path / "blobs"))


class TestBucket(suite.BlobStoreSuite):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return open_blobs("memory:///")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/tests", b"", method="PUT")).close()
    yield f"http://{host}:{port}"
    server.stop()


class TestMoto(suite.BlobStoreSuite):
    @pytest.fixture
    def blobs(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> Blobs:
        said = {"ENDPOINT": moto, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
        for name, value in said.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return open_blobs(f"s3://tests/{uuid4().hex}")


class TestObjectStore(suite.BlobStoreSuite):
    @pytest.fixture
    def blobs(self, s3: str) -> Blobs:
        return open_blobs(s3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return open_blobs(str(root))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def kept(root: Path) -> int:
    return sum(path.stat().st_size for path in files(root))


def test_versions_share_what_they_have_in_common(blobs: Blobs, root: Path) -> None:
    data = bytearray(content(20_000_000))
    blobs.put(bytes(data))
    before = kept(root)
    data[7_000_000:7_200_000] = content(150_000, seed=1)  # 1 % changed, and everything after it moved
    blobs.put(bytes(data))
    assert kept(root) - before < 0.06 * 20_000_000
    before = kept(root)
    blobs.put(bytes(data) + content(500_000, seed=2))
    assert kept(root) - before < 2_200_000


def test_packing_where_it_pays_only(blobs: Blobs, root: Path) -> None:
    text = b"".join(b"%d,%d\n" % (i, i % 97) for i in range(300_000))
    blobs.put(text)
    assert kept(root) < len(text) / 2
    before = kept(root)
    blobs.put(content(3_000_000))
    assert 3_000_000 < kept(root) - before < 3_010_000


def test_a_small_blob_is_one_file(blobs: Blobs, root: Path) -> None:
    blobs.put(content(60_000))
    assert len(files(root)) == 1


def test_memory_stays_flat(root: Path) -> None:
    code = """
import resource, sys
from modelkeep.store.blobs import open_blobs
class Noise:
    def __init__(self, left): self.left = left; self.n = 0
    def read(self, size):
        size = min(size, self.left, 1 << 20); self.left -= size; self.n += 1
        return (self.n.to_bytes(8, "big") * (size // 8 + 1))[:size]
blobs = open_blobs(sys.argv[1])
blobs.put(Noise(8 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest = blobs.put(Noise(300 << 20))
stream = blobs.open(digest)
total = 0
while piece := stream.read(1 << 20): total += len(piece)
assert total == 300 << 20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = subprocess.check_output([sys.executable, "-c", code, str(root)], text=True)
    assert int(grown) < 64


@pytest.mark.parametrize("size", [1_000, 2_000_000])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "kind", "swap"])
def test_damage_is_never_handed_out(blobs: Blobs, root: Path, size: int, harm: str) -> None:
    data = content(size)
    digest = blobs.put(data)
    other = blobs.put(content(size, seed=5))
    assert verify_all(blobs) == []
    for victim in files(root):
        good = victim.read_bytes()
        bad = bytearray(good)
        if harm == "flip":
            bad[len(bad) // 2] ^= 1
        elif harm == "cut":
            bad = bad[:-1]
        elif harm == "empty":
            bad = bytearray()
        elif harm == "kind":
            bad[0] ^= 1
        else:
            other_file = next(
                path for path in files(root) if path != victim and path.parts[-3] == victim.parts[-3]
            )
            bad = bytearray(other_file.read_bytes())
        victim.write_bytes(bad)
        assert len(verify_all(blobs)) == 1
        for name, wanted in ((digest, data), (other, content(size, seed=5))):
            try:
                with blobs.open(name) as stream:
                    assert stream.read() == wanted
                assert blobs.read(name) == wanted
            except Damaged:
                pass
        victim.write_bytes(good)
    assert verify_all(blobs) == []


def test_a_missing_chunk_is_found(blobs: Blobs, root: Path) -> None:
    digest = blobs.put(content(2_000_000))
    next((root / "chunks").rglob("*/*")).unlink()
    with pytest.raises(Damaged, match="missing"):
        blobs.read(digest)
    assert "missing" in verify_all(blobs)[0]


def test_a_stream_that_breaks_leaves_nothing(blobs: Blobs, root: Path) -> None:
    class Breaks(io.RawIOBase):
        left = 40

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError("gone")
            return os.urandom(1 << 20)

    with pytest.raises(OSError, match="gone"):
        blobs.put(Breaks())
    assert list(blobs.digests()) == []
    assert list((root / "drafts").iterdir()) == []


def test_drafts_of_a_crash_are_swept_when_old(root: Path) -> None:
    (root / "drafts").mkdir(parents=True)
    for name in ("old", "new"):
        (root / "drafts" / name).write_bytes(b"half")
    os.utime(root / "drafts" / "old", (1, 1))
    open_blobs(str(root))
    assert [path.name for path in files(root)] == ["new"]


FILLING = """
import os, sys, time
from modelkeep.store.blobs import open_blobs
blobs = open_blobs(sys.argv[1])
n = 0
while True:
    n += 1
    digest = blobs.put(os.urandom(700_000 if n % 3 else 900))
    sys.stdout.write(digest + "\\n"); sys.stdout.flush()
"""


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_torn(root: Path) -> None:
    chance = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", FILLING, str(root)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        acknowledged = [process.stdout.readline().strip() for _ in range(chance.randrange(5, 25))]
        process.kill()
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
        blobs = open_blobs(str(root))
        for digest in acknowledged:
            blobs.verify(digest)
    assert verify_all(blobs) == []


def test_a_full_disk_is_unavailable_and_heals(small_disk: Path) -> None:
    blobs = open_blobs(str(small_disk / "blobs"))
    first = blobs.put(content(1_000_000))
    with pytest.raises(Unavailable, match="No space left"):
        blobs.put(content(30_000_000, seed=1))
    assert list((small_disk / "blobs" / "drafts").iterdir()) == []
    assert blobs.read(first) == content(1_000_000)
    second = blobs.put(content(100_000, seed=2))
    assert set(blobs.digests()) == {first, second}
    assert verify_all(blobs) == []


def test_a_limit_on_file_size_is_unavailable(root: Path) -> None:
    blobs = open_blobs(str(root))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Unavailable, match="too large"):
            blobs.put(content(2_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(blobs.digests()) == []


def test_trees(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content(200_000))
    digest = put_tree(blobs, {"a.txt": b"hello", "sub/weights": path})
    assert put_tree(blobs, {"sub/weights": path, "a.txt": b"hello"}) == digest
    tree = read_tree(blobs, digest)
    assert set(tree) == {"a.txt", "sub/weights"}
    assert blobs.read(tree["a.txt"]) == b"hello"
    assert read_files(blobs, digest) == {"a.txt": b"hello", "sub/weights": content(200_000)}
    with pytest.raises(Damaged, match="not the listing"):
        read_tree(blobs, tree["a.txt"])
    with pytest.raises(NotFound):
        read_tree(blobs, "0" * 64)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "a\\b", "./a", "a/"])
def test_trees_hold_only_what_is_inside(blobs: Blobs, path: str) -> None:
    with pytest.raises(Invalid):
        put_tree(blobs, {path: b"x"})
    evil = blobs.put(b'{"files":{%s:"%s"}}' % (__import__("json").dumps(path).encode(), b"0" * 64))
    with pytest.raises(Damaged, match="outside"):
        read_tree(blobs, evil)


def test_parquet_reads_columns_through_an_open_blob(blobs: Blobs) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": list(range(200_000)), "b": [str(i) for i in range(200_000)]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with blobs.open(blobs.put(sink.getvalue())) as stream:
        assert pq.read_table(stream, columns=["a"]).equals(table.select(["a"]))


def test_wrong_urls_are_refused() -> None:
    with pytest.raises(Invalid, match="blobs"):
        open_blobs("gopher://x")
