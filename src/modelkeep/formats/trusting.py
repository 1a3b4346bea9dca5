"""Code that a package brings along runs only when its digest is trusted."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelkeep.core import scratch
from modelkeep.core.errors import Refused
from modelkeep.formats import manifest as manifests
from modelkeep.formats.manifest import Folder, Manifest

_COMMAND = "if you trust it: modelkeep deploy MODEL@VERSION --trust"


def trust(files: Mapping[str, bytes], trusted: Sequence[str], what: str) -> None:
    """Refuse unless the digest of what the package brings is among ``trusted``; see ``refuse``."""
    refuse(manifests.content(files), trusted, what)


def refuse(content: str, trusted: Sequence[str], what: str) -> None:
    """Refuse unless a digest is among ``trusted``.

    Args:
        content: The digest, as ``manifest.content`` gives it.
        what: What loading would run.

    Raises:
        Refused: It is not; the message says how to trust it.
    """
    if content not in trusted:
        raise Refused(f"loading this model would run {what}", hint=f"{_COMMAND} {content}")


def refuse_names(names: Sequence[str]) -> None:
    """Refuse types and functions that nobody vouches for; nothing when there are none."""
    if names:
        flags = " --trust ".join(names)
        raise Refused(f"loading this model would run {', '.join(names)}", hint=f"{_COMMAND} {flags}")


def on_disk(files: Mapping[str, bytes], manifest: Manifest, owner: object) -> Path:
    """A folder with every file of the package, verified; a temporary one ends with ``owner``."""
    if isinstance(files, Folder):
        for name in manifest.files:
            manifests.located(files, manifest, name)
        return files.path
    folder = scratch.folder("model")
    weakref.finalize(owner, scratch.discard, folder)
    for name in manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(manifests.take(files, manifest, name))
    return folder
