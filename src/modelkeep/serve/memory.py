"""Memory of this process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def resident() -> int:
    """Bytes resident; 0 where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Let the C library give freed memory back to the machine, where it can (glibc).

    Loading a model frees about as much as the model takes, and the library would keep that.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
