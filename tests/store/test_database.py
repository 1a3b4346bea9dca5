from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text

from modelkeep.core.errors import Conflict, Damaged, Invalid, ModelkeepError, Unavailable
from modelkeep.store import migrations
from modelkeep.store.bulk import fetch
from modelkeep.store.database import Database
from modelkeep.store.migrations.freeze import metadata
from modelkeep.store.tables import counters


def put(name: str, value: int = 1):
    def work(conn: Connection) -> str:
        conn.execute(insert(counters), {"name": name, "value": value})
        return name

    return work


def names(db: Database) -> set[str]:
    with db.read() as conn:
        return set(conn.execute(select(counters.c.name)).scalars())


def test_what_is_written_is_read_and_survives_reopening(db: Database, url: str) -> None:
    assert db.write(put("a")) == "a"
    assert names(db) == {"a"}
    db.close()
    again = Database.open(url)
    assert names(again) == {"a"}
    again.close()


SOURCES = (
    ("mlflow-artifacts:/6/r/artifacts/model", "r"),
    ("mlflow-artifacts:/6/r/artifacts", "r"),
    ("mlflow-artifacts:/6/r/artifacts/a/artifacts/b", "r"),
    ("mlflow-artifacts:/6/models/m-1/artifacts", "m-1"),
    ("mlflow-artifacts:/artifacts/t/artifacts/x", "t"),
    ("mlflow-artifacts:/packages/00", ""),
    (f"mlflow-artifacts:/packages/{'0a' * 32}", "0a" * 32),
    (f"mlflow-artifacts:/packages/{'1b' * 32}/model", "1b" * 32),
    (f"mlflow-artifacts:/packages/{'0a' * 32}0", ""),
    (f"mlflow-artifacts:/packages/{'0g' * 32}", ""),
    ("runs:/s/model/a", "s"),
    ("runs:/s", "s"),
    ("models:/m-2", "m-2"),
    ("models:/m/2", ""),
    ("s3://b/6/r/artifacts/model", ""),
    ("blob:00", ""),
)
"""Sources of versions, and whose files they are."""


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_migrations_make_exactly_the_tables(db: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(conn: Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata)

    assert db.write(differences) == []


def test_a_database_of_the_first_schema_is_upgraded_with_its_rows(url: str) -> None:
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    with engine.begin() as conn:
        if url.startswith("postgresql"):  # the template it was made from is up to date
            conn.execute(text("DROP SCHEMA public CASCADE"))
            conn.execute(text("CREATE SCHEMA public"))
        migrations.upgrade(conn, "0001")
        assert "logged_models" not in inspect(conn).get_table_names()
        conn.execute(text("INSERT INTO models (id, name, created_ms, updated_ms) VALUES (5, 'm', 1, 2)"))
        conn.execute(text("INSERT INTO versions (model, version, created_ms, updated_ms) VALUES (5, 1, 3, 4)"))
        conn.execute(text("INSERT INTO experiments (id, name, created_ms, updated_ms) VALUES (6, 'e', 1, 1)"))
        conn.execute(
            text("INSERT INTO runs (id, run_id, experiment, start_ms) VALUES (7, 'r', 6, 77), (8, 's', 6, 88)")
        )
        for table in ("params", "tags"):
            columns = "(run, key, value, experiment)"
            conn.execute(text(f"INSERT INTO {table} {columns} VALUES (7, 'k', 'v', 6), (8, 'k', 'v', 6)"))
        place = "'mlflow-artifacts:/artifacts/t/artifacts'"  # below a folder of this name
        conn.execute(
            text(f"INSERT INTO runs (run_id, experiment, start_ms, artifact_uri) VALUES ('t', 6, 1, {place})")
        )
        for at, (source, _) in enumerate(SOURCES, 2):
            columns = "(model, version, source, created_ms, updated_ms)"
            said = text(f"INSERT INTO versions {columns} VALUES (5, :at, :source, 3, 4)")
            conn.execute(said, {"at": at, "source": source})
        columns = "(run, key, experiment, value, timestamp_ms, step)"
        conn.execute(text(f"INSERT INTO latest_metrics {columns} VALUES (7, 'k', 6, 0.5, 1, 1)"))
    engine.dispose()
    db = Database.open(url)
    with db.read() as conn:
        first = text("SELECT version, model_id, created_ms FROM versions WHERE version = 1")
        assert conn.execute(first).all() == [(1, "", 3)]
        known = text("SELECT source, files_of FROM versions WHERE version > 1 ORDER BY version")
        assert conn.execute(known).all() == list(SOURCES)
        assert conn.execute(text("SELECT count(*) FROM logged_models")).scalar() == 0
        starts = [
            conn.execute(text(f"SELECT run, start_ms FROM {table} ORDER BY run")).all()
            for table in ("params", "tags", "latest_metrics")
        ]
        assert starts == [[(7, 77), (8, 88)], [(7, 77), (8, 88)], [(7, 77)]]
    db.close()


def test_an_empty_database_is_made_by_the_scripts_of_every_revision_in_alembics_order() -> None:
    from alembic.script import ScriptDirectory

    folder = Path(migrations.__file__).parent
    chain = [each.revision for each in ScriptDirectory(str(folder)).walk_revisions()]
    assert chain[::-1] == sorted(path.stem[1:] for path in (folder / "versions").glob("r*.py"))
    for path in (folder / "versions").glob("r*.py"):  # what an upgrade does beyond its script would be left out
        body = path.read_text().partition("def upgrade() -> None:")[2]
        assert body.count("\n    ") == 2
        assert "run(op.get_bind(), Path(__file__).with_suffix(" in body


def test_head_is_the_newest_revision() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head() == migrations.HEAD


def test_opening_an_up_to_date_database_imports_no_alembic(sqlite_url: str) -> None:
    Database.open(sqlite_url).close()
    code = (
        "import sys; from modelkeep.store.database import Database;"
        f"Database.open({sqlite_url!r}).close(); print('alembic' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_newer_schema_is_refused(db: Database, url: str) -> None:
    db.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Damaged, match="9999"):
        Database.open(url)


def test_an_error_undoes_only_its_own_work(db: Database) -> None:
    gate = threading.Event()
    faults: list[BaseException] = []

    def slow(conn: Connection) -> None:
        gate.wait(10)
        put("slow")(conn)

    def bad(conn: Connection) -> None:
        put("bad")(conn)
        raise ValueError("mine")

    first = db.submit(slow)
    rest = [db.submit(bad if i % 3 == 0 else put(f"good{i}")) for i in range(30)]
    gate.set()
    first.result(10)
    for future in rest:
        if (error := future.exception(10)) is not None:
            faults.append(error)
    assert [str(error) for error in faults] == ["mine"] * 10
    assert names(db) == {"slow"} | {f"good{i}" for i in range(30) if i % 3}


def test_a_violated_constraint_is_a_conflict_and_spares_the_others(db: Database) -> None:
    db.write(put("a"))
    with pytest.raises(Conflict):
        db.write(put("a"))
    db.write(put("b"))
    assert names(db) == {"a", "b"}


def test_writing_inside_a_write_is_refused_and_does_not_hang(db: Database) -> None:
    with pytest.raises(RuntimeError, match="inside a write"):
        db.write(lambda conn: db.write(put("a")))
    assert names(db) == set()


def test_cancelled_work_is_not_done_and_harms_no_other(db: Database) -> None:
    gate, inside = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        inside.set()
        gate.wait(10)

    first = db.submit(hold)
    assert inside.wait(10)
    futures = [db.submit(put(name)) for name in ("a", "b", "c")]
    assert not first.cancel()
    assert futures[0].cancel()
    assert futures[1].cancel()
    gate.set()
    assert futures[2].result(10) == "c"
    assert db.write(put("d")) == "d"
    assert names(db) == {"c", "d"}


def test_concurrent_writers_share_commits(sqlite_url: str) -> None:
    db = Database.open(sqlite_url)
    commits = 0

    from sqlalchemy import event

    @event.listens_for(db._writing, "commit")
    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    gate = threading.Event()
    db.submit(lambda conn: gate.wait(10))
    futures = [db.submit(put(str(i))) for i in range(200)]
    gate.set()
    for future in futures:
        future.result(10)
    assert len(names(db)) == 200
    assert commits < 20
    db.close()


def test_a_read_sees_one_state_and_never_waits_for_the_writer(db: Database) -> None:
    db.write(put("a"))
    inside, leave = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        put("b")(conn)
        inside.set()
        leave.wait(10)

    future = db.submit(hold)
    assert inside.wait(10)
    with db.read() as conn, db.read() as other:
        assert set(conn.execute(select(counters.c.name)).scalars()) == {"a"}
        assert fetch(other, "SELECT name FROM counters") == [("a",)]
        leave.set()
        future.result(10)
        assert set(conn.execute(select(counters.c.name)).scalars()) == {"a"}
        assert fetch(other, "SELECT name FROM counters") == [("a",)]
    assert names(db) == {"a", "b"}


def test_reading_connections_cannot_write(db: Database) -> None:
    with pytest.raises(Exception, match=r"read-?only"), db.read() as conn:
        put("a")(conn)
    assert names(db) == set()


def test_a_closed_database_refuses(db: Database) -> None:
    db.write(put("a"))
    db.close()
    with pytest.raises(Unavailable, match="closed"):
        db.write(put("b"))


@pytest.mark.parametrize("wrong", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_wrong_urls_say_what_was_expected(wrong: str) -> None:
    with pytest.raises(Invalid, match="expected"):
        Database.open(wrong)


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is certainly not a database" * 100)
    with pytest.raises(Damaged, match="not a database"):
        Database.open(f"sqlite:///{tmp_path}/x.db")


def test_an_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Database.open(f"postgresql+psycopg://postgres@/x?host={tmp_path}")


def test_a_forked_child_can_write(db: Database) -> None:
    db.write(put("parent"))
    child = os.fork()
    if child == 0:
        try:
            db.write(put("child"))
            os._exit(0 if names(db) == {"parent", "child"} else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    db.write(put("after"))
    assert names(db) == {"parent", "child", "after"}


def test_an_open_database_does_not_keep_the_interpreter_alive(sqlite_url: str) -> None:
    code = (
        "from modelkeep.store.database import Database; from sqlalchemy import text;"
        f"db = Database.open({sqlite_url!r}); db.write(lambda c: c.execute(text('select 1'))); print('end')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=20).strip() == "end"


WRITERS = """
import sys, threading
from sqlalchemy import text
from modelkeep.store.database import Database
db = Database.open(sys.argv[1])
name, count = sys.argv[2], int(sys.argv[3])
one = text("INSERT INTO counters (name, value) VALUES (:n, 1)")
raise_ = text("UPDATE counters SET value = value + 1 WHERE name = 'shared'")
def run(thread):
    for i in range(count):
        def work(conn):
            conn.execute(one, {"n": f"{name}-{thread}-{i}"}); conn.execute(raise_)
        db.write(work)
threads = [threading.Thread(target=run, args=(t,)) for t in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
"""


def test_several_processes_write_at_once(db: Database, url: str) -> None:
    db.write(put("shared", 0))
    processes = [subprocess.Popen([sys.executable, "-c", WRITERS, url, f"p{i}", "150"]) for i in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    with db.read() as conn:
        assert conn.execute(text("SELECT value FROM counters WHERE name = 'shared'")).scalar() == 600
        assert conn.execute(text("SELECT count(*) FROM counters")).scalar() == 601


def test_several_processes_open_a_fresh_database_at_once(sqlite_url: str) -> None:
    code = f"from modelkeep.store.database import Database; Database.open({sqlite_url!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_opening_a_fresh_database_waits_for_whoever_is_making_it(sqlite_url: str) -> None:
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("CREATE TABLE early (a)")
    other.execute("BEGIN IMMEDIATE")
    opened: list[Database] = []
    opening = threading.Thread(target=lambda: opened.append(Database.open(sqlite_url)))
    opening.start()
    opening.join(0.3)
    assert opening.is_alive()
    other.execute("ROLLBACK")
    opening.join(60)
    opened[0].close()
    other.close()


def test_a_lock_held_too_long_is_unavailable(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelkeep.store import engines

    db = Database.open(sqlite_url)
    monkeypatch.setattr(engines, "PATIENCE", 0.3)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        db.write(put("a"))
    other.execute("ROLLBACK")
    db.write(put("b"))
    assert names(db) == {"b"}
    db.close()
    other.close()


def test_a_lost_server_connection_is_unavailable_and_comes_back(postgres_url: str) -> None:
    db = Database.open(postgres_url)
    db.write(put("a"))

    def cut(conn: Connection) -> None:
        put("lost")(conn)
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(ModelkeepError):
        db.write(cut)
    db.write(put("b"))
    assert names(db) == {"a", "b"}
    db.close()


@pytest.mark.parametrize(
    ("whose", "default", "used"),
    [
        ("DATABASE {0}", "off", "on"),
        ("ROLE postgres IN DATABASE {0}", "off", "on"),
        ("DATABASE {0}", "remote_apply", "remote_apply"),
    ],
)
def test_commits_wait_for_the_disk_whatever_the_default_is(
    postgres_url: str, whose: str, default: str, used: str
) -> None:
    import psycopg

    def setting(conn: Connection) -> str:
        return str(conn.execute(text("SHOW synchronous_commit")).scalar_one())

    def cut(conn: Connection) -> None:
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    def fail(conn: Connection) -> None:
        put("lost")(conn)
        raise Invalid("undone")

    plain = postgres_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"ALTER {whose.format(name)} SET synchronous_commit = {default}")
    with psycopg.connect(plain) as conn:
        assert conn.execute("SHOW synchronous_commit").fetchone() == (default,)
    db = Database.open(postgres_url)
    assert db.write(setting) == used
    for failing in (fail, cut):  # neither a rollback nor a new connection takes it back
        with pytest.raises(ModelkeepError):
            db.write(failing)
        assert db.write(setting) == used
    db.close()


def test_two_writers_that_block_each_other_both_succeed(postgres_url: str) -> None:
    one, two = Database.open(postgres_url), Database.open(postgres_url)
    one.write(put("x", 0))
    one.write(put("y", 0))
    meeting = threading.Barrier(2)
    tries = {"one": 0, "two": 0}

    def crosswise(who: str, first: str, second: str):
        def work(conn: Connection) -> None:
            tries[who] += 1
            conn.execute(text("UPDATE counters SET value = value + 1 WHERE name = :n"), {"n": first})
            if tries[who] == 1:
                meeting.wait(10)
            conn.execute(text("UPDATE counters SET value = value + 1 WHERE name = :n"), {"n": second})

        return work

    futures = [one.submit(crosswise("one", "x", "y")), two.submit(crosswise("two", "y", "x"))]
    for future in futures:
        future.result(30)
    with one.read() as conn:
        assert {row.name: row.value for row in conn.execute(select(counters))} == {"x": 2, "y": 2}
    assert sum(tries.values()) > 2
    one.close()
    two.close()


def test_a_full_disk_is_unavailable_and_heals(small_disk: Path) -> None:
    db = Database.open(f"sqlite:///{small_disk}/modelkeep.db")
    db.write(put("before"))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
        while True:
            file.write(bytes(100_000))
            file.flush()
    futures = [db.submit(put(f"full{i}-" + "x" * 5000)) for i in range(20)]
    faults = [future.exception(20) for future in futures]
    refused = {f"full{i}-" + "x" * 5000 for i, fault in enumerate(faults) if fault is not None}
    assert refused
    assert all(isinstance(fault, Unavailable) and "full" in fault.message for fault in faults if fault)
    assert not names(db) & refused
    filler.unlink()
    db.write(put("after"))
    assert {"before", "after"} <= names(db)
    assert not names(db) & refused
    db.close()
    again = Database.open(f"sqlite:///{small_disk}/modelkeep.db")
    assert {"before", "after"} <= names(again)
    again.close()


def test_a_disk_that_becomes_read_only_is_unavailable_and_heals(small_disk: Path) -> None:
    db = Database.open(f"sqlite:///{small_disk}/modelkeep.db")
    db.write(put("before"))
    db.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{small_disk}/modelkeep.db").write(put("no"))
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{small_disk}/fresh/modelkeep.db")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again = Database.open(f"sqlite:///{small_disk}/modelkeep.db")
    again.write(put("after"))
    assert names(again) == {"before", "after"}
    again.close()


ACKNOWLEDGING = """
import sys, threading
from sqlalchemy import text
from modelkeep.store.database import Database
db = Database.open(sys.argv[1])
one = text("INSERT INTO counters (name, value) VALUES (:n, 1)")
lock = threading.Lock()
def run(thread):
    i = 0
    while True:
        name = f"{sys.argv[2]}-{thread}-{i}"; i += 1
        def work(conn):
            conn.execute(one, {"n": name + "-a"}); conn.execute(one, {"n": name + "-b"})
        db.write(work)
        with lock:
            sys.stdout.write(name + "\\n"); sys.stdout.flush()
for t in range(4):
    threading.Thread(target=run, args=(t,)).start()
"""


def test_kill_9_loses_nothing_acknowledged_and_keeps_nothing_half(db: Database, url: str) -> None:
    acknowledged: list[str] = []
    for kill in range(3):
        command = [sys.executable, "-c", ACKNOWLEDGING, url, str(kill)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        acknowledged += [process.stdout.readline().strip() for _ in range(20 + 70 * kill)]
        process.kill()
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
    kept = names(db)
    assert len(acknowledged) >= 270
    assert {f"{name}-{half}" for name in acknowledged for half in "ab"} <= kept
    assert {name[:-2] + "-b" for name in kept} == {name[:-2] + "-b" for name in kept if name.endswith("-a")}
    if db.dialect == "sqlite":
        with db.read() as conn:
            assert conn.execute(text("PRAGMA integrity_check")).scalar() == "ok"
