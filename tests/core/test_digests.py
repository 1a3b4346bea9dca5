import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import digests

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=6))
def test_the_order_of_keys_does_not_matter(value):
    turned = dict(reversed(list(value.items())))
    assert digests.of_value(value) == digests.of_value(turned)


def test_types_are_told_apart():
    kinds = [1, 1.0, "1", True, None, b"1", float("nan"), float("inf"), [1], {"1": 1}]
    assert len({digests.of_value(kind) for kind in kinds}) == len(kinds)


def test_what_has_no_form_is_refused():
    with pytest.raises(TypeError, match="object"):
        digests.of_value(object())
