"""Where bytes are kept, by URL."""

from __future__ import annotations

from pathlib import Path

from modelkeep.store.bytestores import ByteStore, Folder


def open_bytes(url: str) -> ByteStore:
    """A folder (a path or ``file://``), or any URL obstore reads. Raises ``Invalid``, ``Unavailable``."""
    if "://" not in url or url.startswith("file://"):
        return Folder(Path(url.removeprefix("file://")))
    from modelkeep.store.buckets import Bucket  # ten megabytes that a serving process over a folder does without

    return Bucket(url)
