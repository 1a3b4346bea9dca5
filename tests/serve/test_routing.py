"""Routing: shares as asked, sticky, monotone as a canary grows, independent between endpoints."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from modelkeep.serve.routing import Table, position


@dataclass(frozen=True)
class R:
    version: int
    mode: str
    weight: float


KEYS = [f"key-{n}" for n in range(20_000)]
keys = st.text(max_size=40)
weights = st.floats(0, 1)


@given(keys, keys)
def test_a_position_lies_in_the_unit_interval(endpoint: str, key: str) -> None:
    assert 0 <= position(endpoint, key) < 1
    assert position(endpoint, key) == position(endpoint, key)


@given(keys, weights, weights)
def test_a_key_once_on_the_canary_stays_while_it_grows(key: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    before = Table("e", [R(1, "stable", 1 - low), R(2, "canary", low)]).pick(key)
    after = Table("e", [R(1, "stable", 1 - high), R(2, "canary", high)]).pick(key)
    if before.version == 2:
        assert after.version == 2


@given(keys, st.lists(st.tuples(st.sampled_from(["stable", "canary", "shadow"]), weights), min_size=1, max_size=6))
def test_shadows_never_answer_and_something_always_does(key: str, given_routes: list[tuple[str, float]]) -> None:
    routes = [R(n, mode, weight) for n, (mode, weight) in enumerate(given_routes)]
    table = Table("e", routes)
    assert len(table.shadows) == sum(route.mode == "shadow" for route in routes)
    if any(route.mode != "shadow" for route in routes):
        chosen = table.pick(key)
        assert chosen.mode != "shadow"
        if any(route.weight > 0 for route in routes if route.mode != "shadow"):
            assert chosen.weight > 0


def test_shares_are_as_asked() -> None:
    table = Table("e", [R(1, "stable", 0.95), R(2, "canary", 0.05), R(3, "shadow", 1.0)])
    share = sum(table.pick(key).version == 2 for key in KEYS) / len(KEYS)
    assert abs(share - 0.05) < 4 * (0.05 * 0.95 / len(KEYS)) ** 0.5


def test_several_stable_routes_share_in_proportion() -> None:
    table = Table("e", [R(1, "stable", 3), R(2, "stable", 1)])
    share = sum(table.pick(key).version == 2 for key in KEYS) / len(KEYS)
    assert abs(share - 0.25) < 0.02


def test_endpoints_choose_independently() -> None:
    one, two = (Table(name, [R(1, "stable", 0.5), R(2, "canary", 0.5)]) for name in ("one", "two"))
    both = sum(one.pick(key).version == two.pick(key).version for key in KEYS) / len(KEYS)
    assert abs(both - 0.5) < 0.02


def test_one_route_needs_no_key() -> None:
    assert Table("e", [R(1, "stable", 1.0), R(2, "shadow", 1.0)]).only == R(1, "stable", 1.0)
    assert Table("e", [R(2, "shadow", 1.0)]).routes == ()
