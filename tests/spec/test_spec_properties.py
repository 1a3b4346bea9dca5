"""What must hold for every declaration and every text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_strategies import DECLARATIONS
from test_spec_loading import BLUEPRINT

from modelkeep.core.digests import of_value
from modelkeep.core.errors import Invalid
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.expressions import parse_condition, parse_filter, parse_gate, parse_rollout, parse_trigger
from modelkeep.spec.loading import check, dump, from_builtins, load_text, to_builtins
from modelkeep.spec.units import rate, seconds

LINES = """
roc_auc latency_ms . p99 champion slice ( ) a 'x' `b` >= > < = 1 0.5 % - + and or not in is null between like ,
drift new_rows cron * */5 1-3 mon shadow canary 5% 10m per windows error_rate true 1e999 999999999999999999999
"""
WORDS = st.lists(st.sampled_from(LINES.split()), max_size=20).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(DECLARATIONS)
def test_yaml_and_python_load_to_equal_objects(declaration: Declaration) -> None:
    check(declaration)
    text = dump(declaration)
    loaded = load_text(text)
    assert loaded == declaration
    assert dump(loaded) == text
    builtins = to_builtins(declaration)
    assert from_builtins(json.loads(json.dumps(builtins))) == declaration
    assert of_value(to_builtins(loaded)) == of_value(builtins)


@settings(deadline=None, max_examples=200)
@given(st.text() | WORDS)
@pytest.mark.parametrize(
    "parse", [parse_gate, parse_condition, parse_trigger, parse_rollout, parse_filter, seconds, rate, load_text]
)
def test_any_text_parses_or_is_invalid(parse: object, text: str) -> None:
    try:
        parse(text)  # type: ignore[operator]
    except Invalid as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)


@settings(deadline=None, max_examples=100)
@given(st.data(), DECLARATIONS)
def test_a_damaged_declaration_is_refused_or_read_never_more(
    data: st.DataObject, declaration: Declaration
) -> None:
    """Replace one value anywhere by something else: nothing but Invalid may come out."""
    builtins = json.loads(json.dumps(to_builtins(declaration)))
    spot = builtins
    while True:
        key = data.draw(st.sampled_from(sorted(spot)) if isinstance(spot, dict) else st.integers(0, len(spot) - 1))
        if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
            spot = spot[key]
            continue
        spot[key] = data.draw(
            st.sampled_from([None, True, 7, -1.5, float("inf"), "x", [], ["a"], {}, {"a": 1}, [[]]])
        )
        break
    try:
        assert isinstance(from_builtins(builtins), Declaration)
    except Invalid as error:
        assert error.problems


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, len(BLUEPRINT)),
    st.integers(0, 40),
    st.text(max_size=5)
    | st.sampled_from(["\n", "  ", "- ", ": ", "[", "}", "&a ", "*a", "!!int ", "'", "|", "<<: ", "\t"]),
)
def test_an_edited_file_is_refused_or_read_never_more(at: int, cut: int, put: str) -> None:
    text = BLUEPRINT[:at] + put + BLUEPRINT[at + cut :]
    try:
        assert isinstance(load_text(text, "m.yaml"), Declaration)
    except Invalid as error:
        lines = text.count("\n") + 2
        assert all(problem.file == "m.yaml" and problem.line <= lines for problem in error.problems)
