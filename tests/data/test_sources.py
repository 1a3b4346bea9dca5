"""Sources read what is there and refuse what is not a table, naming file and line."""

from __future__ import annotations

import datetime
import os
import sqlite3
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from modelkeep.core.errors import Invalid, MissingExtra, ModelkeepError, NotFound, Unavailable, UserCodeFailed
from modelkeep.core.ports import Source
from modelkeep.data import files, readers, sources
from modelkeep.data.sources import RemoteFiles, open_source
from modelkeep.spec.declaration import Data, Origin
from modelkeep.spec.steps import Cast

ROWS = pa.table({"id": [1, 2, 3], "x": [0.5, None, 2.5], "s": ["a", None, "c"], "b": [True, False, None]})


def rows_of(source, base: Path, **data) -> pa.Table:
    opened = open_source(Data(source=source, **data), base)
    assert isinstance(opened, Source)
    return pa.concat_tables([piece for name in opened.fingerprint() for piece in opened.pieces(name)])


def write(folder: Path, name: str, table: pa.Table = ROWS) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_pandas().to_json(path, orient="records", lines=True)
    else:
        pyarrow.feather.write_feather(table, path)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    assert rows_of(name, tmp_path).to_pydict() == ROWS.to_pydict()
    opened = open_source(Data(source=name), tmp_path)
    assert opened.schema().names == ["id", "x", "s", "b"]
    assert sum(batch.num_rows for batch in opened.read(name)) == 3


def test_folders_and_globs_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("d/2.parquet", "d/sub/1.csv", "d/.hidden.csv", "d/notes.txt"):
        write(tmp_path, name) if not name.endswith("txt") else (tmp_path / name).write_text("no data")
    opened = open_source(Data(source="d"), tmp_path)
    assert list(opened.fingerprint()) == ["d/2.parquet", "d/sub/1.csv"]
    assert list(open_source(Data(source="d/*.parquet"), tmp_path).fingerprint()) == ["d/2.parquet"]
    assert list(open_source(Data(source=str(tmp_path / "d" / "*.parquet")), tmp_path).fingerprint()) == [
        "d/2.parquet"
    ]
    assert list(open_source(Data(source=f"file://{tmp_path}/d"), tmp_path).fingerprint())


def test_a_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv")
    opened = open_source(Data(source="t.csv"), tmp_path)
    before = opened.fingerprint()
    assert opened.fingerprint() == before
    os.utime(path, ns=(1, 1))
    assert opened.fingerprint() != before


BAD = {
    "empty.csv": (b"", "the file is empty"),
    "header.csv": (b"a,b\n", "header but no row"),
    "ragged.csv": (b"a,b\n1,2\n3\n4,5\n", "ragged.csv:3:1"),
    "long.csv": (b"a,b\n1,2\n3,4\n5,6,7\n", "long.csv:4:1"),
    "latin.csv": ("a,b\n1,x\n2,caf\u00e9\n".encode("latin-1"), "latin.csv:3:1"),
    "latin_header.csv": ("caf\u00e9,b\n1,x\n".encode("latin-1"), "UTF-8"),
    "utf16.csv": ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
    "mixed.csv": (b"a,b\n1,2\n2,3\nthree,4\n5,5\n", "mixed.csv:4:1"),
    "twice.csv": (b"a,a\n1,2\n", "two columns are called 'a'"),
    "broken.jsonl": (b'{"a": 1}\n{"a": \n', "broken.jsonl"),
    "mixed.jsonl": (b'{"a": 1}\n{"a": "x"}\n', "mixed.jsonl:2:1"),
    "not.parquet": (b"no parquet at all, just text", "cannot be read as parquet"),
    "not.arrow": (b"no arrow at all, just text here", "cannot be read as arrow"),
    "what.xyz": (b"a", "unknown kind of file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Invalid) as caught:
        rows_of(name, tmp_path)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_missing_files_say_where_was_looked(tmp_path: Path) -> None:
    for source in ("nowhere.csv", "no/*.csv"):
        with pytest.raises(NotFound, match="no data file") as caught:
            open_source(Data(source=source), tmp_path).fingerprint()
        assert str(tmp_path) in str(caught.value)


def test_a_declared_cast_reads_mixed_values_as_text(tmp_path: Path) -> None:
    (tmp_path / "mixed.csv").write_text("a,b\n1,2\n02,3\nthree,4\n")
    table = rows_of("mixed.csv", tmp_path, clean=(Cast(columns={"a": "string"}),))
    assert table.column("a").to_pylist() == ["1", "02", "three"]


def test_csv_dialects(tmp_path: Path) -> None:
    (tmp_path / "semi.csv").write_text('a;b\n1;"x\ny"\n2;"z;z"\n')
    assert rows_of("semi.csv", tmp_path).to_pydict() == {"a": [1, 2], "b": ["x\ny", "z;z"]}
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2024-01-02 03:04:05\r\n,\r\n")
    assert rows_of("bom.csv", tmp_path).to_pydict() == {
        "a": [1, None],
        "b": [datetime.datetime(2024, 1, 2, 3, 4, 5), None],
    }


def test_a_large_text_file_is_read_in_pieces_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 1000)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i}{'.5' if i > 400 else ''}\n" for i in range(500)))
    pieces = list(open_source(Data(source="t.csv"), tmp_path).pieces("t.csv"))
    assert len(pieces) > 2
    assert [value for piece in pieces for value in piece.column("a").to_pylist()] == list(range(500))
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 900 + "1\n" + "1,2\n")
    with pytest.raises(Invalid, match=r"t\.csv:902:1"):
        rows_of("t.csv", tmp_path)


def test_ten_thousand_columns_are_quick(tmp_path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(10_000))
    (tmp_path / "wide.csv").write_text(
        names + "\n" + "\n".join(",".join(["1.5"] * 10_000) for _ in range(20)) + "\n"
    )
    assert rows_of("wide.csv", tmp_path).shape == (20, 10_000)


def test_odd_types_become_few(tmp_path: Path) -> None:
    table = pa.table(
        {
            "d": pa.array(["a", "b"]).dictionary_encode(),
            "large": pa.array(["a", "b"], pa.large_string()),
            "small": pa.array([1, 2], pa.int8()),
            "half": pa.array([1, 2], pa.float32()),
            "money": pa.array([1, 2], pa.decimal128(10, 2)),
            "ns": pa.array([1, 1001], pa.timestamp("ns")),
            "zone": pa.array([0, 1], pa.timestamp("s", "Europe/Berlin")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    types = [str(field.type) for field in rows_of("t.parquet", tmp_path).schema]
    assert types == ["string", "string", "int64", "double", "double", "timestamp[us]", "timestamp[us, tz=UTC]"]


def test_object_stores_list_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = obstore.store.MemoryStore()
    monkeypatch.setattr(sources.objects, "open_store", lambda root, path: store)
    obstore.put(store, "d/1.csv", b"a,b\n1,2\n")
    obstore.put(store, "d/2.csv", b"a,b\n3,4\n")
    obstore.put(store, "d/readme.txt", b"no data")
    for address in ("s3://bucket/d", "s3://bucket/d/", "s3://bucket/d/*.csv"):
        assert rows_of(address, tmp_path).to_pydict() == {"a": [1, 3], "b": [2, 4]}
    assert rows_of("s3://bucket/d/2.csv", tmp_path).to_pydict() == {"a": [3], "b": [4]}
    before = open_source(Data(source="s3://bucket/d"), tmp_path).fingerprint()
    obstore.put(store, "d/1.csv", b"a,b\n9,9\n")
    after = open_source(Data(source="s3://bucket/d"), tmp_path).fingerprint()
    assert before["s3://bucket/d/2.csv"] == after["s3://bucket/d/2.csv"]
    assert before["s3://bucket/d/1.csv"] != after["s3://bucket/d/1.csv"]
    with pytest.raises(NotFound):
        RemoteFiles("s3://bucket/nothing/*.csv").fingerprint()
    obstore.put(store, "bad.csv", b"a,b\n1\n")
    with pytest.raises(Invalid, match=r"s3://bucket/bad\.csv:2:1"):
        rows_of("s3://bucket/bad.csv", tmp_path)


def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.execute("create table orders (id integer, price real, name text)")
        db.executemany(
            "insert into orders values (?, ?, ?)", [(i, i / 2, None if i % 3 else f"n{i}") for i in range(250)]
        )
    return tmp_path / "shop.db"


def test_sql_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelkeep.data import origins

    monkeypatch.setattr(origins, "FETCH", 100)
    monkeypatch.setenv("SHOP", str(database(tmp_path)))
    origin = Origin(url="sqlite:///${SHOP}", query="select * from orders where id >= 10 order by id")
    opened = open_source(Data(source=origin), tmp_path)
    pieces = list(opened.pieces("query"))
    assert [piece.num_rows for piece in pieces] == [100, 100, 40]
    assert pieces[0].column("price").to_pylist()[:2] == [5.0, 5.5]
    assert opened.fingerprint() == opened.fingerprint()


@pytest.mark.parametrize(
    ("origin", "kind", "said"),
    [
        (Origin(url="sqlite:///shop.db", query="select * from nowhere"), Invalid, "no such table"),
        (Origin(url="sqlite:///shop.db", query="selec 1"), Invalid, "syntax"),
        (Origin(url="sqlite:///shop.db", query="select * from orders where id < 0"), Invalid, "no row"),
        (Origin(url="sqlite:///shop.db"), Invalid, "needs a query"),
        (Origin(url="sqlite:///gone.db", query="select 1"), Unavailable, "there is no database"),
        (Origin(url="sqlite:///${NO_SUCH}", query="select 1"), Invalid, "NO_SUCH"),
        (Origin(url="what is this", query="select 1"), Invalid, "not a database URL"),
        (Origin(url="mysql+nodriver://x/y", query="select 1"), (Invalid, MissingExtra), "mysql"),
        (Origin(), Invalid, "either a url"),
    ],
)
def test_bad_queries(tmp_path: Path, origin: Origin, kind, said: str) -> None:
    database(tmp_path)
    with pytest.raises(kind) as caught:
        rows_of(origin, tmp_path)
    assert said in str(caught.value)


def test_functions(tmp_path: Path) -> None:
    (tmp_path / "own_source.py").write_text(
        "import pandas as pd, pyarrow as pa\n"
        "def frame(rows=2):\n    return pd.DataFrame({'a': range(rows)})\n"
        "def stream(rows=2):\n    for i in range(rows):\n        yield pa.table({'a': [i]})\n"
        "def broken():\n    yield pa.table({'a': [1]})\n    raise KeyError('what')\n"
        "def wrong():\n    return 7\n"
        "def mixed():\n    return pd.DataFrame({'a': [1, 'x']})\n"
        "def nothing():\n    return pd.DataFrame({'a': []})\n"
    )
    for name in ("frame", "stream"):
        assert rows_of(Origin(function=f"own_source:{name}", params={"rows": 4}), tmp_path).to_pydict() == {
            "a": [0, 1, 2, 3]
        }
    expected: dict[str, tuple[type[ModelkeepError], str]] = {
        "broken": (UserCodeFailed, "raise KeyError('what')"),
        "wrong": (UserCodeFailed, "returned a int"),
        "mixed": (Invalid, "mixed types"),
        "nothing": (Invalid, "no row"),
        "absent": (Invalid, "absent"),
    }
    for name, (kind, said) in expected.items():
        with pytest.raises(kind) as caught:
            rows_of(Origin(function=f"own_source:{name}"), tmp_path)
        assert said in str(caught.value)


def test_postgresql_streams_its_types(postgres_url: str, tmp_path: Path) -> None:
    url = postgres_url.replace("postgresql+psycopg://", "postgresql://")
    query = (
        "select i as id, i::numeric(10, 2) / 4 as price, case when i > 2 then 'a' || i end as name, "
        "timestamptz '2024-01-01 00:00+02' as at, md5('x')::uuid as u from generate_series(1, 5) i order by i"
    )
    table = rows_of(Origin(url=url, query=query), tmp_path)
    assert table.column("price").to_pylist()[:2] == [0.25, 0.5]
    assert table.column("name").to_pylist()[:3] == [None, None, "a3"]
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    with pytest.raises(Invalid, match="does not exist"):
        rows_of(Origin(url=url, query="select * from nowhere"), tmp_path)
    with pytest.raises(Unavailable):
        rows_of(Origin(url="postgresql://nobody@127.0.0.1:1/x", query="select 1"), tmp_path)


def test_every_kind_of_file_that_is_looked_for_can_be_read() -> None:
    assert tuple(readers.READERS) == files.SUFFIXES
