"""How much memory work may take: a share of the machine's, or what ``MODELKEEP_MEMORY`` says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from modelkeep.core import machine
from modelkeep.core.errors import Invalid

SETTING = "MODELKEEP_MEMORY"
SHARE = 4
"""The part of the machine's memory that is the budget: one of so many."""

LEAST = 1 << 20
"""Bytes below which no amount is one."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def budget() -> int:
    """Bytes that preparing and training may hold at once, all processes together.

    Raises:
        Invalid: The setting is no amount of memory.
    """
    said = os.environ.get(SETTING, "").strip()
    return parse(said) if said else machine.memory() // SHARE


def parse(text: str) -> int:
    """Bytes of ``2GB``, ``500 MiB`` or ``1000000``; units are powers of 1024. Raises ``Invalid``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    made = int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0
    if made < LEAST:
        raise Invalid(
            f"{text!r} is no amount of memory; expected at least 1MB, such as 2GB or 512MB", path=SETTING
        )
    return made


def shown(size: float) -> str:
    """Bytes for people: ``1.6 GB``, ``34 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def peak() -> int:
    """Most bytes this process has held so far (resident); 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
