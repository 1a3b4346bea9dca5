"""Sources: tables somewhere else, in partitions with cheap fingerprints.

Files by path, folder, glob or object-store URL; a SQL query; a Python function.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Protocol

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError, NotFoundError

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.core.scratch import temporary
from modelkeep.data.files import SUFFIXES, WILD, Listing, is_local
from modelkeep.data.lakes import LakeAddress, LakeSource, is_lake
from modelkeep.data.origins import FunctionOrigin, SqlOrigin
from modelkeep.data.readers import File, pieces, schema
from modelkeep.spec.declaration import Data, Origin
from modelkeep.spec.steps import Cast
from modelkeep.store import objects


class TableSource(Protocol):
    """The ``Source`` port, with whole pieces instead of batches: what snapshots read.

    Promises: pieces fit in memory and come in a stable order; their types may widen from piece to piece.
    """

    def fingerprint(self) -> Mapping[str, str]: ...

    def schema(self) -> pa.Schema: ...

    def read(self, partition: str) -> Iterator[pa.RecordBatch]: ...

    def pieces(self, partition: str) -> Iterator[pa.Table]: ...


def open_source(data: Data, base: Path) -> TableSource:
    """The source that ``data.source`` declares; nothing is read yet.

    Args:
        base: The declaration's folder: relative paths start there.

    Raises:
        Invalid: The address makes no sense.
    """
    if isinstance(data.source, Origin):
        origin = data.source
        if bool(origin.function) == bool(origin.url):
            raise Invalid("give either a url with a query, or a function", path="data.source")
        if origin.function:
            return FunctionOrigin(origin, base)
        return SqlOrigin(origin, base)
    as_text = {name for step in data.clean if isinstance(step, Cast) for name in step.columns}
    if not data.source:
        raise Invalid("no source is declared", path="data.source", hint="name a file, folder, glob or URL")
    if is_lake(data.source):
        return LakeSource(LakeAddress.of(data.source, base))
    if is_local(data.source):
        return LocalFiles(Listing(data.source, base), as_text)
    return RemoteFiles(data.source, as_text)


class _Files:
    """Files of known kinds; each is one partition, named as found."""

    def __init__(self, as_text: Collection[str]) -> None:
        self._as_text = frozenset(as_text)

    def file(self, partition: str) -> AbstractContextManager[File]:
        raise NotImplementedError

    def fingerprint(self) -> Mapping[str, str]:
        raise NotImplementedError

    def schema(self) -> pa.Schema:
        """Of the first file. Raises ``Invalid``."""
        with self.file(next(iter(self.fingerprint()))) as file:
            return schema(file)

    def pieces(self, partition: str) -> Iterator[pa.Table]:
        """The rows of one file. Raises ``Invalid`` naming file and line."""
        with self.file(partition) as file:
            yield from pieces(file, self._as_text)

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        """The rows of one file. Raises ``Invalid`` naming file and line."""
        for piece in self.pieces(partition):
            yield from piece.to_batches()


class LocalFiles(_Files):
    """Files of this machine."""

    def __init__(self, listing: Listing, as_text: Collection[str] = ()) -> None:
        super().__init__(as_text)
        self._listing = listing

    def fingerprint(self) -> Mapping[str, str]:
        """Size and time of change by path, relative to the declaration's folder where it is inside.

        Raises:
            NotFound: There is no such file.
        """
        return self._listing.fingerprint()

    def path(self, partition: str) -> Path:
        """Where the file of a partition is."""
        return self._listing.base / partition

    def file(self, partition: str) -> AbstractContextManager[File]:
        """The file of a partition."""
        path = self.path(partition)
        return nullcontext(File(partition, path.suffix.lower(), path))


class RemoteFiles(_Files):
    """A file, a folder or a glob in an object store, or one file by HTTP; credentials from the environment."""

    def __init__(self, address: str, as_text: Collection[str] = ()) -> None:
        super().__init__(as_text)
        scheme, _, rest = address.partition("://")
        host, _, self._path = rest.partition("/")
        self._root = f"{scheme}://{host}"
        self._listed = scheme not in ("http", "https")

    @cached_property
    def _store(self) -> obstore.store.ObjectStore:
        store: obstore.store.ObjectStore = objects.open_store(self._root, "data.source")
        return store

    def fingerprint(self) -> Mapping[str, str]:
        """Size and version of each object, by its URL.

        Raises:
            NotFound: There is no such object.
            Unavailable: The store does not answer.
        """
        wild = WILD.search(self._path)
        prefix = self._path[: wild.start()].rpartition("/")[0] if wild else self._path.rstrip("/")
        try:
            if not wild and Path(self._path).suffix.lower() in SUFFIXES:
                found = [obstore.head(self._store, self._path)]
            elif self._listed:
                found = [item for batch in obstore.list(self._store, prefix or None) for item in batch]
            else:
                raise Invalid("a web address must name one file", path="data.source")
        except (FileNotFoundError, NotFoundError):
            found = []
        except BaseError as error:
            raise objects.fault(f"data.source: {self._root}", error) from error
        made = {}
        for item in sorted(found, key=lambda item: item["path"]):
            path = item["path"]
            if Path(path).suffix.lower() in SUFFIXES and (not wild or fnmatch.fnmatchcase(path, self._path)):
                made[f"{self._root}/{path}"] = (
                    f"{item['size']}-{item['e_tag'] or item['last_modified'].isoformat()}"
                )
        if not made:
            raise NotFound(f"data.source: no data file at {self._root}/{self._path}")
        return made

    @contextmanager
    def file(self, partition: str) -> Iterator[File]:
        """A copy of the object of a partition, on this machine's disk as long as it is needed."""
        path = partition.removeprefix(f"{self._root}/")
        with temporary("source") as folder:
            copy = objects.fetch(self._store, f"data.source: {partition}", path, folder)
            yield File(partition, Path(path).suffix.lower(), copy)
