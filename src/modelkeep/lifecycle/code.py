"""The code a version was made with: the git commit, and what was not committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from modelkeep.core.ports import BlobStore
from modelkeep.registry.lineage import Code

_LIMIT = 5.0


def here(base: Path, blobs: BlobStore) -> Code:
    """The state of the repository that holds ``base``; empty outside one, or without git."""
    commit = _git(base, "rev-parse", "HEAD")
    if not commit:
        return Code()
    dirty = _git(base, "diff", "HEAD", "--", ".")
    return Code(commit=commit.strip(), dirty_diff=blobs.put(dirty.encode()) if dirty else "")


def _git(base: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(base), *arguments], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""
