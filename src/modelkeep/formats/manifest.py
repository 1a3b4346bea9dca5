"""The manifest of a package: what is in it, by digest, and how it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from blake3 import blake3
from msgspec import Struct

from modelkeep.core.errors import Damaged, NotFound, Refused
from modelkeep.formats.feed import Feed

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
SAMPLE = "sample.json"
ONNX = "model.onnx"
WEIGHTS = "model.onnx.data"
SKOPS = "model.skops"

RuntimeName = Literal["onnx", "sklearn", "graph", "xgboost", "lightgbm", "torch", "pyfunc", "function"]


class Entry(Struct, frozen=True):
    """One file of a package."""

    blake3: str
    size: int


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a package holds.

    Attributes:
        format: Version of this layout.
        runtime: What runs it.
        note: Why it is not ONNX, when it is not.
        task: ``classification``, ``regression`` or ``anomaly``.
        files: Every other file by path.
        numbers: Columns of the graph's input ``numbers``.
        strings: Columns of the graph's input ``strings``.
        trust: Names of types and functions outside scikit-learn and this package that loading it runs.
        model: The file that the runtime loads, when it is not called as usual.
        form: How that file is written, where the runtime knows several.
        feed: How the inputs become what the model takes; none: as the pipelines of this package do.
    """

    format: int
    runtime: RuntimeName
    task: str
    files: dict[str, Entry]
    note: str = ""
    numbers: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    model: str = ""
    form: str = ""
    feed: Feed | None = None


class Folder(Mapping[str, bytes]):
    """The files of a folder, read when asked for. Paths use ``/``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")) if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def entry(data: bytes) -> Entry:
    """A file's digest (BLAKE3) and size."""
    return Entry(blake3(data).hexdigest(), len(data))


def read(files: Mapping[str, bytes]) -> Manifest:
    """The manifest of a package.

    Raises:
        NotFound: There is none.
        Damaged: It cannot be read.
        Refused: It is of a later format.
    """
    try:
        data = files[MANIFEST]
    except KeyError:
        raise NotFound(f"no {MANIFEST}: this is no package of a version") from None
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if manifest.format > FORMAT:
        raise Refused(
            f"the package has format {manifest.format}, this release reads up to {FORMAT}",
            hint="upgrade modelkeep",
        )
    return manifest


def take(files: Mapping[str, bytes], manifest: Manifest, name: str) -> bytes:
    """One file, verified.

    Raises:
        Damaged: It is not there, not listed, or its bytes have another digest than the manifest says.
    """
    listed = manifest.files.get(name)
    if listed is None:
        raise Damaged(f"{name} is not in the manifest of the package")
    try:
        data = files[name]
    except KeyError:
        raise Damaged(f"the package lacks {name}") from None
    found = entry(data)
    if found != listed:
        raise Damaged(f"{name} has digest {found.blake3}, the manifest says {listed.blake3}")
    return data


def located(files: Folder, manifest: Manifest, name: str) -> Path:
    """Where one file of a folder is, verified without reading it into memory. Raises ``Damaged`` as ``take``."""
    listed = manifest.files.get(name)
    if listed is None:
        raise Damaged(f"{name} is not in the manifest of the package")
    path = files.path / name
    try:
        found = blake3(max_threads=1).update_mmap(path).hexdigest()
    except OSError:
        raise Damaged(f"the package lacks {name}") from None
    if found != listed.blake3:
        raise Damaged(f"{name} has digest {found}, the manifest says {listed.blake3}")
    return path


def content(files: Mapping[str, bytes]) -> str:
    """The digest of what a package brings: its files save those that only describe them.

    This is what is trusted: it can be told before the model was ever loaded, and does not change with how it is
    described. The manifest's own digests are used, so whatever is loaded must be taken from it.
    """
    return content_of(read(files).files)


def content_of(files: Mapping[str, Entry]) -> str:
    """As ``content``, of files by path."""
    listed = {name: each.blake3 for name, each in files.items() if name not in (MANIFEST, SIGNATURE, SAMPLE)}
    return blake3(msgspec.json.encode({"files": listed}, order="deterministic")).hexdigest()


def verify(files: Mapping[str, bytes]) -> Manifest:
    """Verify every file of a package; raises as ``read`` and ``take`` do."""
    manifest = read(files)
    for name in manifest.files:
        take(files, manifest, name)
    return manifest
