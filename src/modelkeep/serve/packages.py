"""Local copies of the packages that are served: whole or not there, verified whenever they are loaded.

``<home>/packages/<digest>/`` holds the files and, as ``.tree``, the listing whose BLAKE3 digest is the package's
own; so a copy proves itself without the store.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
from blake3 import blake3

from modelkeep.core.errors import Damaged, ModelkeepError, NotFound, Unavailable
from modelkeep.core.ports import BlobStore, Model
from modelkeep.formats import manifest, runtimes, samples
from modelkeep.formats.signature import Signature
from modelkeep.serve.columns import Inputs, Loaded
from modelkeep.serve.isolated import DEFAULT, IsolatedModel, Terms
from modelkeep.serve.isolated_keeper import Keeper
from modelkeep.serve.residency import Residency, Resident
from modelkeep.store.blobs import read_tree

log = logging.getLogger(__name__)

_LISTING = ".tree"
_WARMED = 1 << 22
"""Most values of the rows that warm a model."""


class LocalPackages:
    """Packages in a folder, fetched from the store when they are not there.

    Args:
        folder: Where copies are kept; other processes may share it.
        blobs: Opens the store; called only when something must be fetched. Raises ``Unavailable``.
        memory: Bytes that all models together may take; those asked longest ago are unloaded. 0 for no limit.
    """

    def __init__(self, folder: Path, blobs: Callable[[], BlobStore], memory: int = 0) -> None:
        self.folder = folder
        self.residency = Residency(memory)
        self._running = False
        self._blobs = blobs
        self._loaded: dict[tuple[str, tuple[str, ...], Terms], Loaded] = {}
        self._guard = threading.Lock()
        self._keeper = Keeper()

    def load(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        """The version, verified and warm; the same object while it is wanted.

        When memory is full before serving has begun, it is loaded with its first request instead.

        Raises:
            Damaged: Neither the copy nor the store has the bytes that the digest names.
            NotFound, Unavailable: The store does not have it, or is away.
            Refused: Loading it would run code that is not trusted.
        """
        key = (digest, tuple(trusted), terms)
        with self._guard:
            found = self._loaded.get(key)
            if found is None:
                self._fetched(digest)
                files = manifest.Folder(self.folder / digest)
                found = self._resident(digest, files, trusted, terms, verified_now=True)
                self._loaded[key] = found
            if isinstance(found.model, Resident) and (self._running or not self.residency.full):
                self.residency.bring(found.model)
            return found

    def on_request(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        """The version, of which only the signature is read now; the rest is fetched and loaded when it is asked.

        Raises:
            Damaged, NotFound, Unavailable: As ``load``.
        """
        key = (digest, tuple(trusted), terms)
        with self._guard:
            if key not in self._loaded:
                files: Mapping[str, bytes] = manifest.Folder(self.folder / digest)
                if manifest.MANIFEST not in files:
                    files = _head(self._blobs(), digest)
                self._loaded[key] = self._resident(digest, files, trusted, terms)
            return self._loaded[key]

    def keep(self, digests: Iterable[str]) -> None:
        """Forget the models of all other packages; their copies on disk stay for a quick return."""
        wanted = set(digests)
        with self._guard:
            self._loaded = {key: loaded for key, loaded in self._loaded.items() if key[0] in wanted}
        self._running = True

    def close(self) -> None:
        """End the processes of models that run apart."""
        self._keeper.close()

    def _resident(
        self,
        digest: str,
        files: Mapping[str, bytes],
        trusted: Sequence[str],
        terms: Terms,
        *,
        verified_now: bool = False,
    ) -> Loaded:
        about = manifest.read(files)
        signature = runtimes.signature(files)
        here = about.runtime in runtimes.IN_PROCESS

        def load() -> Model:
            nonlocal verified_now
            if not verified_now:
                self._fetched(digest)
            verified_now = False
            folder = self.folder / digest
            verified = manifest.Folder(folder)
            model: Model
            if here:
                model = runtimes.load(verified, trusted=trusted)
            else:
                model = IsolatedModel(self._keeper, about.runtime, folder, signature, trusted=trusted, terms=terms)
            warm(model, signature, samples.recorded(verified), forgiving=about.feed is not None)
            return model

        least = about.files[about.model or manifest.ONNX].size if here else 0
        model = Resident(
            self.residency,
            load,
            digest[:12],
            apart=not here,
            least=least,
            repeatable=here or terms.repeatable,  # a graph has no side effects
        )
        return Loaded(model, Inputs(signature), about.runtime, None if here else model)

    def _fetched(self, digest: str) -> None:
        """See that the local copy is whole."""
        try:
            verify(self.folder / digest, digest)
        except (NotFound, Damaged) as error:
            if isinstance(error, Damaged):
                log.warning("the local copy is fetched anew: %s", error)
                shutil.rmtree(self.folder / digest, ignore_errors=True)
            self._fetch(digest)

    def _fetch(self, digest: str) -> None:
        """Copy a package from the store: into a folder beside, then renamed."""
        blobs = self._blobs()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = Path(mkdtemp(dir=self.folder, prefix=".fetching-"))
            try:
                for path, name in read_tree(blobs, digest).items():
                    target = fresh / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with blobs.open(name) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                with blobs.open(digest) as source:
                    (fresh / _LISTING).write_bytes(source.read())
                verify(fresh, digest)
                try:
                    fresh.replace(self.folder / digest)
                except OSError:  # another process was quicker; its copy must hold too
                    verify(self.folder / digest, digest)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        except OSError as error:
            raise Unavailable(
                f"package {digest[:12]} cannot be copied: {error}", hint="make room on the disk"
            ) from error


def verify(folder: Path, digest: str) -> None:
    """Check every byte of a copy against the package's digest.

    Raises:
        NotFound: There is no copy.
        Damaged: Some file is missing or has other bytes.
    """
    try:
        listing = (folder / _LISTING).read_bytes()
    except OSError:
        raise NotFound(f"no copy of package {digest[:12]}") from None
    if blake3(listing).hexdigest() != digest:
        raise Damaged(f"the listing of package {digest[:12]} has other bytes than its digest says")
    files = msgspec.json.decode(listing, type=dict[str, dict[str, str]])["files"]
    for path, name in files.items():
        try:
            found = blake3(max_threads=1).update_mmap(os.fspath(folder / path)).hexdigest()
        except OSError as error:
            raise Damaged(f"package {digest[:12]} lacks {path}: {error.strerror}") from None
        if found != name:
            raise Damaged(f"{path} of package {digest[:12]} has other bytes than its digest says")


def _head(blobs: BlobStore, digest: str) -> dict[str, bytes]:
    """What describes a package, from the store."""
    listing = read_tree(blobs, digest)
    found: dict[str, bytes] = {}
    for name in (manifest.MANIFEST, manifest.SIGNATURE):
        if name in listing:
            with blobs.open(listing[name]) as stream:
                found[name] = stream.read()
    return found


def warm(model: Model, signature: Signature, rows: Mapping[str, list[Any]], *, forgiving: bool = False) -> None:
    """Predict recorded rows, else made-up ones, so that the first request does not pay for lazy set-up.

    Args:
        rows: Recorded in the package, lists by input; empty when there are none.
        forgiving: Whether a model of somebody else's may refuse rows that were made up.

    Raises:
        ModelkeepError: The model cannot predict at all.
    """
    width = sum(field.size for field in signature.inputs)
    for count in (1, min(16, max(1, _WARMED // width))):
        try:
            model.predict(samples.batch(signature, rows, count))
        except Exception as error:
            if forgiving and not rows:
                log.info("made-up rows do not warm the model: %s", error)
                return
            if isinstance(error, ModelkeepError):
                raise
            raise ModelkeepError(f"the model fails on a row of its own ranges: {error}") from error
