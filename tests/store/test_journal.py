"""Small blobs that come many at a time: what was acknowledged outlives the process and the machine."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from modelkeep.core.errors import Unavailable
from modelkeep.store import disks, journal
from modelkeep.store.blobs import Blobs, open_blobs, put_all, verify_all
from modelkeep.store.bytestores import Folder
from modelkeep.store.disks import kind_of
from modelkeep.store.journal import MOST, Record, records, to_bytes
from modelkeep.store.sweeping import Marks, sweep_blobs
from small import until

_spec = importlib.util.spec_from_file_location(
    "conformance_blobs", Path(__file__).parents[1] / "conformance" / "blobs.py"
)
assert _spec and _spec.loader
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)

NAME = f"blobs/ab/{'c' * 62}"


class Gathering(Blobs):
    """Takes every blob as a server takes uploads."""

    def put(self, stream: BinaryIO | bytes) -> str:
        return self.put_many({"": stream}, gathered=True)[""][0]


class TestGathered(suite.BlobStoreSuite):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[Blobs]:
        blobs = Gathering(Folder(tmp_path / "blobs"))
        yield blobs
        blobs.close()
        assert journals(tmp_path / "blobs") == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> Iterator[Blobs]:
    found = open_blobs(str(root))
    yield found
    found.close()


def journals(root: Path) -> list[Path]:
    return sorted((root / "journal").glob("*.journal"))


def place(root: Path, digest: str) -> Path:
    return root / "blobs" / digest[:2] / digest[2:]


def bodies(count: int, size: int = 1000) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def cut_off(blobs: Blobs) -> None:
    """As if its process were killed: its locks are gone, its journals are not."""
    theirs: Any = blobs.below._journal  # type: ignore[attr-defined]
    with theirs._changed:
        for each in (theirs._current, *theirs._retired):
            if each is not None:
                os.close(each.file)
        theirs._current = None
        theirs._retired.clear()
        theirs._changed.notify_all()


def lose(root: Path, chance: random.Random) -> int:
    """What a machine that goes down may lose: whatever stands in a journal and was not flushed itself."""
    lost = 0
    for path in journals(root):
        for record in records(path):
            victim = root / record.name
            if not victim.exists():
                continue
            harm = chance.randrange(4)
            if harm == 0:
                victim.unlink()
                if not any(victim.parent.iterdir()):
                    victim.parent.rmdir()
            elif harm == 1:
                victim.write_bytes(b"")
            elif harm == 2:
                victim.write_bytes(victim.read_bytes()[: len(record.payload) // 2])
            lost += harm < 3
    return lost


def test_a_record_comes_back_and_a_torn_or_damaged_one_ends_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    whole = [Record(NAME, b"one" * 50), Record(NAME.replace("c", "d"), b""), Record(NAME, b"r" * MOST)]
    data = [to_bytes(record) for record in whole]
    path.write_bytes(b"".join(data))
    assert list(records(path)) == whole
    for cut in [*range(1, len(data[0]) + 1), len(data[0]) + len(data[1]) - 1]:
        path.write_bytes(b"".join(data)[:cut])
        assert list(records(path)) == (whole[:1] if cut >= len(data[0]) else [])
    for at in range(len(data[0])):
        harmed = bytearray(b"".join(data))
        harmed[at] ^= 1
        path.write_bytes(harmed)
        assert list(records(path)) == []


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["../outside", "/outside", "blobs/ab/../../x", "drafts/x", NAME + "/x"])
def test_a_journal_writes_nowhere_else(tmp_path: Path, root: Path, name: str) -> None:
    (root / "journal").mkdir(parents=True)
    before = files(tmp_path)
    told = str(tmp_path) + name if name.startswith("/") else name
    (root / "journal" / "evil.journal").write_bytes(to_bytes(Record(told, b"x")))
    open_blobs(str(root))
    assert {path.name for path in files(tmp_path) - before} == {"lock"}


def test_only_small_ones_stand_in_the_journal_and_a_close_leaves_none(root: Path, blobs: Blobs) -> None:
    small, large = bodies(3), os.urandom(MOST + 1)
    kept = put_all(blobs, [*small, large])
    [path] = journals(root)
    assert [root / record.name for record in records(path)] == [place(root, digest) for digest in kept[:3]]
    assert [blobs.read(digest) for digest in kept] == [*small, large]
    blobs.close()
    assert journals(root) == []
    assert [blobs.read(digest) for digest in kept] == [*small, large]
    again = put_all(blobs, bodies(1))
    assert len(journals(root)) == 1
    assert blobs.exists(again[0])


def test_what_is_put_once_in_a_while_needs_no_journal(root: Path, blobs: Blobs) -> None:
    blobs.put(b"x")
    blobs.put_many({"a": b"y"})
    assert not (root / "journal").exists()


def test_nothing_is_written_twice_where_a_file_system_cannot_be_relied_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_KINDS", frozenset())
    kept = put_all(open_blobs(str(root)), [b"x"])
    assert not (root / "journal").exists()
    assert open_blobs(str(root)).exists(kept[0])


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /srv rw shared:3 master:1 - nfs4 host:/srv rw
31 30 0:26 /sub /srv/with\040space rw - xfs /dev/vdb rw
32 22 0:27 / /tmp rw - tmpfs tmpfs rw
33 22 0:28 / /tmp rw - overlay overlay rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/x", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/x", "nfs4"),
        ("/srvx", "ext4"),
        ("/srv/with space/b", "xfs"),
        ("/tmp/x", "overlay"),
    ],
)
def test_the_file_system_is_that_of_the_mount_that_is_nearest(path: str, kind: str) -> None:
    assert kind_of(path, MOUNTS) == kind
    assert kind_of(path, "") == ""


def test_kernels_whose_flush_tells_no_errors_are_not_relied_on() -> None:
    told = {"5.8.0": True, "6.1.0-rc3+": True, "5.7.19-x": False, "4.19.0": False, "strange": False}
    assert {release: disks._reports(release) for release in told} == told


def test_what_the_machine_lost_is_written_again(root: Path) -> None:
    chance = random.Random(1)
    kept: dict[str, bytes] = {}
    for _ in range(3):  # going down again while it is written changes nothing
        blobs = open_blobs(str(root))
        for _ in range(5):
            given = bodies(20)
            kept |= dict(zip(put_all(blobs, given), given, strict=True))
        cut_off(blobs)
        assert lose(root, chance) > 20
        for path in journals(root):
            with path.open("ab") as file:
                file.write(to_bytes(Record(NAME, b"x" * 500))[: chance.randrange(550)])
    blobs = open_blobs(str(root))
    assert journals(root) == []
    assert {digest: blobs.read(digest) for digest in kept} == kept
    assert verify_all(blobs) == []
    assert set(blobs.digests()) == set(kept)


UPLOADING = """
import os, sys, threading
from modelkeep.store.blobs import open_blobs, put_all
blobs, turn = open_blobs(sys.argv[1]), threading.Lock()
def work():
    while True:
        digests = put_all(blobs, [os.urandom(900) for _ in range(3)])
        with turn:
            sys.stdout.write("".join(digest + "\\n" for digest in digests)); sys.stdout.flush()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
"""


def uploading(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", UPLOADING, str(root)], stdout=subprocess.PIPE, text=True)


def killed(process: subprocess.Popen[str], after: int) -> list[str]:
    """The digests that were acknowledged."""
    assert process.stdout
    told = [process.stdout.readline() for _ in range(after)]
    process.kill()
    told += list(process.stdout)
    process.wait()
    return [line.strip() for line in told if line.endswith("\n")]


def test_kill_9_and_a_machine_that_goes_down_lose_nothing_acknowledged(root: Path) -> None:
    chance = random.Random(0)
    acknowledged: list[str] = []
    for _ in range(3):
        processes = [uploading(root) for _ in range(2)]  # each has a journal of its own
        for process in processes:
            acknowledged += killed(process, chance.randrange(10, 200))
        assert lose(root, chance)
        blobs = open_blobs(str(root))
        for digest in acknowledged:
            blobs.verify(digest)
    assert verify_all(blobs) == []
    assert len(acknowledged) >= 60


def test_the_journal_of_a_living_process_is_left_alone(root: Path) -> None:
    living = uploading(root)
    try:
        assert living.stdout
        living.stdout.readline()
        [theirs] = journals(root)
        blobs = open_blobs(str(root))
        kept = put_all(blobs, bodies(2))
        assert len(journals(root)) == 2
        blobs.close()
        assert journals(root) == [theirs]
        for _ in range(5):
            open_blobs(str(root))
        assert journals(root) == [theirs]
    finally:
        acknowledged = killed(living, 20)
    assert lose(root, random.Random(2))
    blobs = open_blobs(str(root))
    for digest in (*acknowledged, *kept):
        blobs.verify(digest)
    assert journals(root) == []


def swept(blobs: Blobs) -> tuple[int, int]:
    """What goes and what is too young when nothing is needed and nobody is waited for."""
    with Marks() as marks:
        blobs.below.settle()
        found = sweep_blobs(blobs, marks, time.time() + 1, dry_run=False, step=lambda _: None)
    return found.count, found.young


def test_what_was_removed_does_not_come_back(root: Path, blobs: Blobs) -> None:
    dead = open_blobs(str(root))
    put_all(dead, bodies(2))
    cut_off(dead)
    put_all(blobs, bodies(3))
    assert swept(blobs) == (5, 0)
    assert journals(root) == []
    digest = put_all(blobs, [b"deleted"])[0]
    blobs.delete(digest)
    cut_off(blobs)
    assert list(open_blobs(str(root)).digests()) == []


def test_what_another_process_may_write_again_is_not_removed_yet(root: Path, blobs: Blobs) -> None:
    other = open_blobs(str(root))
    put_all(other, bodies(2))
    blobs.put(b"not in a journal")
    assert swept(blobs) == (1, 2)
    other.close()
    assert swept(blobs) == (2, 0)


def test_a_full_disk_keeps_what_was_acknowledged_and_heals(small_disk: Path) -> None:
    root = small_disk / "blobs"
    blobs, kept = open_blobs(str(root)), dict[str, bytes]()
    with pytest.raises(Unavailable, match="No space left"):
        while True:
            given = bodies(10, 10_000)
            kept |= dict(zip(put_all(blobs, given), given, strict=True))
    assert list((root / "drafts").iterdir()) == []
    shutil.rmtree(root / "blobs")  # all that the machine may have lost
    cut_off(blobs)
    blobs = open_blobs(str(root))
    assert kept.items() == {digest: blobs.read(digest) for digest in kept}.items()
    assert put_all(blobs, [b"after"]) == [blobs.put(b"after")]
    assert verify_all(blobs) == []


def test_a_record_that_was_cut_short_hides_none_behind_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AGE", 1000.0)
    blobs = open_blobs(str(root))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    kept, refused = dict[str, bytes](), 0
    try:
        for _ in range(20):
            body = os.urandom(9_000)
            try:
                kept[put_all(blobs, [body])[0]] = body
            except Unavailable as error:
                assert "too large" in error.message
                refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused > 1
    assert len(kept) > 5
    cut_off(blobs)
    lose(root, random.Random(3))
    blobs = open_blobs(str(root))
    assert {digest: blobs.read(digest) for digest in kept} == kept


def test_a_disk_that_is_only_read(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small_disk / "blobs"

    def become(state: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{state}", str(small_disk)], check=True)

    blobs = open_blobs(str(root))
    first, second = put_all(blobs, [b"first", b"second"])
    cut_off(blobs)
    become("ro")
    blobs = open_blobs(str(root))
    assert (blobs.read(first), blobs.read(second)) == (b"first", b"second")
    assert verify_all(blobs) == []
    assert caplog.records == []
    become("rw")
    place(root, second).unlink()
    become("ro")
    blobs = open_blobs(str(root))
    assert blobs.read(first) == b"first"
    [path] = journals(root)
    assert verify_all(blobs) == [f"journal {path}: 1 objects are missing; {_refusal(root)}"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    become("rw")
    blobs = open_blobs(str(root))
    assert (blobs.read(first), blobs.read(second)) == (b"first", b"second")
    assert (verify_all(blobs), journals(root)) == ([], [])


def _refusal(root: Path) -> str:
    return f"blobs cannot be kept in {root}: Read-only file system; 8 MB are free there"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the disk still reports, to the next flush of all of it, that something could not be written."""
    times, flush = [0], disks.syncfs

    def syncfs(file: int) -> None:
        if times[0]:
            times[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(file)

    monkeypatch.setattr(journal, "syncfs", syncfs)
    return times


def test_what_may_not_have_reached_the_disk_is_written_anew(root: Path, blobs: Blobs, failing: list[int]) -> None:
    kept = put_all(blobs, bodies(2))
    before = [place(root, digest).stat().st_ino for digest in kept]
    failing[0] = 1
    blobs.close()
    assert journals(root) == []
    assert all(place(root, d).stat().st_ino != inode for d, inode in zip(kept, before, strict=True))
    assert verify_all(blobs) == []


def test_a_journal_that_cannot_be_settled_stays(root: Path, blobs: Blobs, failing: list[int]) -> None:
    kept = put_all(blobs, bodies(2))
    failing[0] = 1
    drafts = root / "drafts"
    drafts.rename(root / "away")  # so that nothing can be written anew either
    with pytest.raises(Unavailable, match="cannot be settled"):
        blobs.below.settle()
    assert len(journals(root)) == 1
    (root / "away").rename(drafts)
    before = place(root, kept[0]).stat().st_ino
    blobs.below.settle()
    assert place(root, kept[0]).stat().st_ino != before  # the disk reports an error once: it is still in doubt
    assert journals(root) == []


def test_a_journal_is_settled_when_it_is_large_or_old(
    root: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SIZE", 5000)
    put_all(blobs, bodies(6))
    until(lambda: journals(root) == [])
    monkeypatch.setattr(journal, "AGE", 0.01)
    put_all(blobs, bodies(1))
    until(lambda: journals(root) == [])
    assert verify_all(blobs) == []


def test_a_journal_waits_for_files_that_have_no_name_yet(
    root: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    showing, go, renamed = threading.Event(), threading.Event(), Path.rename

    def rename(self: Path, target: Any) -> Path:
        if self.parent.name == "drafts":
            showing.set()
            assert go.wait(60)
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with ThreadPoolExecutor(2) as pool:
        put = pool.submit(put_all, blobs, [b"x"])
        assert showing.wait(60)
        settled = pool.submit(blobs.close)
        time.sleep(0.05)
        assert (settled.done(), len(journals(root))) == (False, 1)
        go.set()
        settled.result(60)
    assert journals(root) == []
    assert blobs.read(put.result()[0]) == b"x"


def test_who_comes_while_the_disk_is_waited_for_shares_the_next_flush(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(blobs, [b"first"])
    flushes, began, go, flush = [0], threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(file: int) -> None:
        flushes[0] += 1
        began.set()
        assert go.wait(60)
        flush(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    current = blobs.below._journal._current  # type: ignore[attr-defined]
    with ThreadPoolExecutor(9) as pool:
        pool.submit(put_all, blobs, bodies(1))
        assert began.wait(60)
        before = current.written
        for _ in range(8):
            pool.submit(put_all, blobs, bodies(1))
        until(lambda: current.written - before > 8000)
        go.set()
    assert flushes == [2]


def test_a_flush_that_failed_is_not_tried_again(blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = put_all(blobs, bodies(1))
    flush, fails = os.fdatasync, [True]

    def fdatasync(file: int) -> None:
        if fails.pop():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(file)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(Unavailable, match="Input/output"):
        put_all(blobs, [b"lost"])
    monkeypatch.setattr(os, "fdatasync", flush)
    [before] = journals(root)
    put_all(blobs, [b"lost"])
    assert before not in journals(root) or len(journals(root)) == 2
    blobs.close()
    assert journals(root) == []
    blobs.verify(kept[0])


def test_a_journal_that_somebody_removed_is_not_relied_on(root: Path, blobs: Blobs) -> None:
    put_all(blobs, bodies(1))
    journals(root)[0].unlink()
    with pytest.raises(Unavailable, match="was removed by somebody else"):
        put_all(blobs, [b"x"])
    assert blobs.exists(put_all(blobs, [b"x"])[0])
    assert len(journals(root)) == 1
