"""The user's own modules on their way to the workers: those beside a declaration, as one zip."""

from __future__ import annotations

import atexit
import importlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

from modelkeep.core import digests, scratch
from modelkeep.core.errors import Invalid

FILES = 2000
BYTES = 20_000_000
_LOCK = threading.Lock()
_INSTALLED: dict[str, str] = {}
"""What this process has unpacked: digest -> folder; the last is in use."""


def gather(base: Path) -> bytes:
    """Every Python file in a folder and below, but for hidden folders and environments.

    Raises:
        Invalid: They are too many or too large to be somebody's own modules.
    """
    stream, count, total = io.BytesIO(), 0, 0
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for folder, folders, names in os.walk(base):
            folders[:] = sorted(name for name in folders if _wanted(Path(folder) / name))
            for path in sorted(Path(folder) / name for name in names if name.endswith(".py")):
                content = path.read_bytes()
                count, total = count + 1, total + len(content)
                if count > FILES or total > BYTES:
                    raise Invalid(
                        f"{base} holds more than {FILES:,} Python files or {BYTES // 10**6} MB of them, too many "
                        "to send to an engine's workers",
                        path="engine",
                        hint="give the declaration and its functions a folder of their own",
                    )
                # a date of its own would give equal code another digest
                bundle.writestr(zipfile.ZipInfo(path.relative_to(base).as_posix()), content)
    return stream.getvalue()


def install(digest: str, base: str, load: Callable[[], bytes]) -> None:
    """Make a bundle's modules importable in this process, in place of those of an earlier one.

    Args:
        digest: Of the bundle.
        base: The folder it was made of; a worker on the same machine imports from there.
        load: Gets the bundle; called once per process.
    """
    with _LOCK:
        if next(reversed(_INSTALLED), "") == digest:
            return
        folder = _INSTALLED.pop(digest, "")
        if not folder:
            content = load()
            made = scratch.folder("code")
            atexit.register(scratch.discard, made)
            folder = str(made)
            with zipfile.ZipFile(io.BytesIO(content)) as bundle:
                bundle.extractall(folder)
        for other in _INSTALLED.values():
            if other in sys.path:
                sys.path.remove(other)
        _forget((*_INSTALLED.values(), base))
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        _INSTALLED[digest] = folder


def digest_of(content: bytes) -> str:
    """What a bundle is known by."""
    return digests.of_value(content)


def _forget(folders: tuple[str, ...]) -> None:
    """Imported modules of these folders are imported anew: their files may have changed."""
    starts = tuple(f"{folder}{os.sep}" for folder in folders if folder)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(starts) and name != "__main__":
            del sys.modules[name]


def _wanted(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name in ("__pycache__", "node_modules", "site-packages"):
        return False
    return not (folder / "pyvenv.cfg").exists()
