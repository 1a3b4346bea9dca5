"""Byte stores that obstore reaches: S3, GCS, Azure, memory. Apart, so that who has a folder needs no client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
from obstore.exceptions import BaseError

from modelkeep.core.errors import NotFound
from modelkeep.store import objects
from modelkeep.store.bytestores import Entry
from modelkeep.store.chunks import Buffer

REFRESH = 12 * 3600.0
"""Seconds after which an object in a bucket is written again when it is put again, so that it counts as new."""


class Bucket:
    """An object store. Its own put is atomic and durable."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store: Any = objects.open_store(url, "blobs")
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="modelkeep-bucket")

    def batch(self, *, gathered: bool = False) -> BucketBatch:
        return BucketBatch(self, self._pool)

    def settle(self) -> None:
        """Nothing brings an object back."""

    def unsettled(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is left behind."""

    def put(self, name: str, payload: bytes) -> None:
        """Of two that write one object at once, one does; what has long been there is written again."""
        if objects.put(self._store, self.url, name, payload):
            return
        age = self.age(name)
        if age is None or age >= REFRESH:
            objects.put(self._store, self.url, name, payload, replace=True)

    def get(self, name: str) -> bytes:
        with self._reached():
            return bytes(obstore.get(self._store, name).bytes())

    def exists(self, name: str) -> bool:
        try:
            with self._reached():
                obstore.head(self._store, name)
        except NotFound:
            return False
        return True

    def head(self, name: str, count: int) -> bytes:
        with self._reached():
            return bytes(obstore.get_range(self._store, name, start=0, length=count))

    def age(self, name: str) -> float | None:
        """Seconds since an object was written; None when there is none."""
        try:
            with self._reached():
                written: float = obstore.head(self._store, name)["last_modified"].timestamp()
        except NotFound:
            return None
        return time.time() - written

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound), self._reached():
            obstore.delete(self._store, name)

    def discard(self, name: str, before: float) -> bool:
        age = self.age(name)
        if age is not None and time.time() - age >= before:
            return False
        self.delete(name)
        return True

    def names(self, folder: str) -> Iterator[str]:
        with self._reached():
            for page in obstore.list(self._store, prefix=folder):
                for entry in page:
                    yield str(entry["path"])

    def entries(self, folder: str) -> Iterator[Entry]:
        with self._reached():
            for page in obstore.list(self._store, prefix=folder):
                for each in page:
                    yield Entry(str(each["path"]), int(each["size"]), each["last_modified"].timestamp())

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise objects.fault(self.url, error) from error


class BucketBatch:
    """Objects sent in parallel, a bounded number at a time."""

    def __init__(self, bucket: Bucket, pool: ThreadPoolExecutor) -> None:
        self._bucket, self._pool = bucket, pool
        self._sent: list[Any] = []

    def touch(self, name: str) -> bool:
        age = self._bucket.age(name)
        return age is not None and age < REFRESH

    def add(self, name: str, payload: Sequence[Buffer]) -> None:
        self._sent.append(self._pool.submit(self._bucket.put, name, b"".join(payload)))

    def seal(self) -> None:
        sent, self._sent = self._sent, []
        for done in sent:
            done.result()

    def drop(self) -> None:
        for waiting in self._sent:
            waiting.cancel()
        self._sent = []
