"""Sources that are not files: a SQL query, a Python function."""

from __future__ import annotations

import decimal
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from modelkeep.core.errors import Invalid, MissingExtra, Unavailable, UserCodeFailed
from modelkeep.core.plugins import load_function, user_code
from modelkeep.data.types import canonical
from modelkeep.spec.declaration import Origin

FETCH = 100_000
"""Rows of a query held in memory at once."""


class SqlOrigin:
    """A query on a database that SQLAlchemy reaches, read as a stream of batches.

    Give the query an ORDER BY: without one the database may order its rows anew each time, and the same rows
    in another order are another snapshot.
    """

    def __init__(self, origin: Origin, base: Path) -> None:
        if not origin.query:
            raise Invalid("a database needs a query", path="data.source.query")
        self._query = origin.query
        self._url = _url(origin.url, base)

    def fingerprint(self) -> Mapping[str, str]:
        """Of an SQLite file, its time of change; other databases do not say, so their query always runs."""
        name = self._url.database
        if self._url.get_backend_name() == "sqlite" and name and name != ":memory:":
            if not Path(name).is_file():
                raise Unavailable(f"data.source.url: there is no database {name}")
            stamps = [Path(name + end) for end in ("", "-wal")]
            return {"query": " ".join(f"{p.stat().st_size}-{p.stat().st_mtime_ns}" for p in stamps if p.exists())}
        return {"query": uuid.uuid4().hex}

    def schema(self) -> pa.Schema:
        """From the first batch."""
        return next(self.pieces("query")).schema

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        """The rows of the query. Raises ``Invalid``, ``Unavailable``."""
        for piece in self.pieces(partition):
            yield from piece.to_batches()

    def pieces(self, partition: str) -> Iterator[pa.Table]:
        """The rows of the query. Raises ``Invalid``, ``Unavailable``."""
        rows = 0
        try:
            engine = create_engine(self._url)
            try:
                with engine.connect() as conn:
                    stream = conn.execution_options(stream_results=True, yield_per=FETCH).execute(
                        text(self._query)
                    )
                    names = list(stream.keys())
                    for batch in stream.partitions(FETCH):
                        rows += len(batch)
                        yield canonical(_columns(names, batch), _fault)
            finally:
                engine.dispose()
        except OperationalError as error:
            raise _sql_fault(error) from error
        except NoSuchModuleError as error:
            raise Invalid(f"unknown kind of database: {error}", path="data.source.url") from error
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "the database's driver", "postgres") from error
        except SQLAlchemyError as error:
            raise Invalid(str(error).splitlines()[0], path="data.source.query") from error
        if not rows:
            raise Invalid("the query gives no row", path="data.source.query")


class FunctionOrigin:
    """A function of the user's that returns a table, a DataFrame, or an iterator of either."""

    def __init__(self, origin: Origin, base: Path) -> None:
        self._name = origin.function
        self._params = dict(origin.params)
        self._parts = origin.parts
        self._base = base
        if origin.parts < 0:
            raise Invalid(f"{origin.parts} parts; expected at least 1", path="data.source.parts")

    def fingerprint(self) -> Mapping[str, str]:
        """Never the same: what a function returns cannot be known without calling it."""
        stamp = uuid.uuid4().hex
        names = [f"{self._name}/{part}" for part in range(self._parts)] or [self._name]
        return dict.fromkeys(names, stamp)

    def schema(self) -> pa.Schema:
        """From the first table."""
        return next(self.pieces(f"{self._name}/0" if self._parts else self._name)).schema

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        """What the function returns. Raises ``Invalid``, ``UserCodeFailed``."""
        for piece in self.pieces(partition):
            yield from piece.to_batches()

    def pieces(self, partition: str) -> Iterator[pa.Table]:
        """What the function returns. Raises ``Invalid``, ``UserCodeFailed``."""
        function = load_function(self._name, base=self._base, path="data.source.function")
        rows = 0
        params = self._params | ({"part": int(partition.rpartition("/")[2])} if self._parts else {})
        with user_code(f"{self._name}()"):
            made = function(**params)
        for item in self._items(made):
            table = self._table(item)
            rows += table.num_rows
            if table.num_rows:
                yield canonical(table, self._fault)
        if not rows:
            raise self._fault("returned no row")

    def _items(self, made: Any) -> Iterator[Any]:
        if isinstance(made, pa.Table | pa.RecordBatch) or _is_frame(made) or not isinstance(made, Iterable):
            yield made
            return
        iterator = iter(made)
        while True:
            with user_code(f"{self._name}()"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _table(self, item: Any) -> pa.Table:
        if isinstance(item, pa.Table):
            return item
        if isinstance(item, pa.RecordBatch):
            return pa.Table.from_batches([item])
        if _is_frame(item):
            try:
                return pa.Table.from_pandas(item, preserve_index=False)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise self._fault(f"returned a column of mixed types: {' '.join(map(str, error.args))}") from error
        raise UserCodeFailed(
            f"{self._name} returned a {type(item).__name__}, expected a pyarrow.Table or a pandas.DataFrame, "
            "or an iterator of them",
            traceback="",
        )

    def _fault(self, message: str) -> Invalid:
        return Invalid(f"{self._name}: {message}", path="data.source.function")


def _url(given: str, base: Path) -> URL:
    missing = [name for name in re.findall(r"\$\{(\w+)\}", given) if name not in os.environ]
    if missing:
        raise Invalid(
            f"the environment has no {missing[0]}", path="data.source.url", hint=f"export {missing[0]}=..."
        )
    try:
        url = make_url(re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found.group(1)], given))
    except ArgumentError:
        raise Invalid(
            "not a database URL; expected 'postgresql://user@host/name' or 'sqlite:///file.db'",
            path="data.source.url",
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        return url.set(database=str(base / url.database))
    return url


def _columns(names: list[str], rows: Any) -> pa.Table:
    columns = []
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        try:
            columns.append(pa.array(_plain(values)))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise Invalid(
                f"column {name!r} has mixed types: {error}",
                path="data.source.query",
                hint=f"CAST({name} AS ...) in the query",
            ) from error
    if len(set(names)) < len(names):
        raise Invalid("two columns of the query have one name", path="data.source.query", hint="give one an alias")
    return pa.table(columns, names=names)


def _plain(values: tuple[Any, ...]) -> list[Any]:
    first = next((value for value in values if value is not None), None)
    if isinstance(first, decimal.Decimal):
        return [None if value is None else float(value) for value in values]
    if isinstance(first, uuid.UUID):
        return [None if value is None else str(value) for value in values]
    return list(values)


def _fault(message: str) -> Invalid:
    return Invalid(message, path="data.source.query")


def _sql_fault(error: OperationalError) -> Invalid | Unavailable:
    said = str(error.orig).splitlines()[0]
    if "no such" in said or "syntax" in said:
        return Invalid(said, path="data.source.query")
    return Unavailable(f"data.source.url: {said}", hint="check that the database is up and the URL is right")


def _is_frame(made: Any) -> bool:
    """Whether it is pandas' table; who made one has imported pandas, which is slow."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(made, pandas.DataFrame)
