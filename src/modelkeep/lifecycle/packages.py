"""A version's package in the blob store, read file by file as it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelkeep.core.ports import BlobStore
from modelkeep.store.blobs import read_tree


class _Files(Mapping[str, bytes]):
    def __init__(self, blobs: BlobStore, listing: Mapping[str, str]) -> None:
        self._blobs = blobs
        self._listing = listing

    def __getitem__(self, name: str) -> bytes:
        with self._blobs.open(self._listing[name]) as stream:
            return stream.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._listing)

    def __len__(self) -> int:
        return len(self._listing)


def files_of(blobs: BlobStore, package: str) -> Mapping[str, bytes]:
    """The files of a package by path; each is read, and verified, when it is asked for.

    Raises:
        NotFound: There is no such package.
    """
    return _Files(blobs, read_tree(blobs, package))
