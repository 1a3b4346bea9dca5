"""Rows cut into parts at random, among them empty parts and parts of one row."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st


def cuts(rows: int) -> st.SearchStrategy[list[slice]]:
    """Parts in order that hold all rows together."""
    spot = st.tuples(st.integers(0, rows), st.sampled_from(["plain", "empty", "one row"]))
    return st.lists(spot, max_size=5).map(lambda spots: _parts(rows, spots))


def _parts(rows: int, spots: list[tuple[int, str]]) -> list[slice]:
    edges = [0, rows]
    for at, kind in spots:
        edges += {"plain": [at], "empty": [at, at], "one row": [at, min(at + 1, rows)]}[kind]
    return [slice(start, stop) for start, stop in itertools.pairwise(sorted(edges))]
