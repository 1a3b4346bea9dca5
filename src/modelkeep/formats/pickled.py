"""Estimators that were pickled. Whoever calls this has seen that the digest is trusted."""

from __future__ import annotations

import pickle
from typing import Any

from modelkeep.core.errors import Damaged


def unpickled(data: bytes, name: str) -> Any:
    """What trusted bytes hold.

    Args:
        name: Of the file.

    Raises:
        Damaged: They cannot be unpickled here.
    """
    try:
        return pickle.loads(data)  # noqa: S301 - its digest is trusted
    except Exception as error:  # unpickling raises what the code in it raises
        raise Damaged(f"{name} cannot be unpickled here: {type(error).__name__}: {error}") from error
