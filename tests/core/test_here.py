"""The tree that engines merge by."""

from __future__ import annotations

import pytest

from modelkeep.core.errors import Invalid
from modelkeep.core.here import BLOCK, Here, tree


def nest(left: str, right: str) -> str:
    return f"({left}{right})"


@pytest.mark.parametrize("count", [*range(1, 20), 63, 64, 65, 127, 128, 129, 200])
def test_the_tree_does_not_depend_on_how_many_are_merged_at_once(count):
    leaves = [f"{number}." for number in range(count)]
    trees = {tree(Here().map, nest, leaves, block=block) for block in (1, 2, 8, BLOCK)}
    assert trees == {Here().reduce(nest, leaves)}
    (merged,) = trees
    assert merged.replace("(", "").replace(")", "") == "".join(leaves)


def test_one_result_per_doubling_is_held_and_not_all():
    alive = most = 0

    class Result:
        def __init__(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    assert Here().reduce(lambda left, right: Result(), (Result() for _ in range(1000)))
    assert most <= 10 + 4


def test_there_must_be_something_to_reduce():
    with pytest.raises(Invalid, match="nothing to reduce"):
        Here().reduce(nest, [])
