"""Request and prediction ids.

A request's id is the client's own or a fresh one. A request of one row has one prediction, whose id is the
request's; with several rows the prediction ids are ``<id>/0``, ``<id>/1``, ... in the order of the rows.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable


def generator() -> Callable[[], str]:
    """Ids unique across processes and machines: 80 random bits for the process, then a counter."""
    prefix = os.urandom(10).hex()
    following = itertools.count(1).__next__

    def fresh() -> str:
        return f"{prefix}-{following():x}"

    return fresh
