"""What is installed here and at the workers; told before work starts, where it differs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from modelkeep.core.errors import Refused

KEY = ("modelkeep", "numpy", "pandas", "pyarrow", "scikit-learn")
"""What travels pickled between driver and workers is made of these."""


def report() -> dict[str, str]:
    """The version of Python and of each key package of this process; empty for one that is not installed."""
    return dict(_report())


@cache
def _report() -> dict[str, str]:
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in KEY:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def must_agree(driver: Mapping[str, str], worker: Mapping[str, str], where: str) -> None:
    """Compare the versions of both sides: modelkeep's whole, of the others the first two numbers.

    Args:
        driver: Of the process that asks for the work.
        worker: Of one that does it.
        where: The worker, for the message.

    Raises:
        Refused: They differ.
    """
    differ = [
        f"{name} {driver[name] or 'none'} here and {worker.get(name) or 'none'} there"
        for name in driver
        if _told(name, driver[name]) != _told(name, worker.get(name, ""))
    ]
    if differ:
        raise Refused(
            f"{where} has other versions than this process: {'; '.join(differ)}",
            hint="install the same on both sides: modelkeep to the letter, the others to the minor version",
        )


def _told(name: str, number: str) -> str:
    return number if name == "modelkeep" else ".".join(number.split(".")[:2])
