import pytest

from modelkeep.core import plugins
from modelkeep.core.errors import Invalid, MissingExtra, UserCodeFailed


def test_a_missing_extra_names_the_pip_command():
    with pytest.raises(MissingExtra) as caught:
        plugins.require("no_such_vendor", "vendor")
    assert 'pip install "modelkeep[vendor]"' in str(caught.value)


def test_user_functions_load_from_beside_the_declaration(tmp_path):
    (tmp_path / "mine_ok.py").write_text("def f():\n    return 7\n")
    assert plugins.load_function("mine_ok:f", base=tmp_path, path="train.algorithm")() == 7


@pytest.mark.parametrize("reference", ["nonsense", "no_such_module:f", "mine_gap:g", "mine_gap:x"])
def test_wrong_references_name_the_field(tmp_path, reference):
    (tmp_path / "mine_gap.py").write_text("x = 3\n")
    with pytest.raises(Invalid) as caught:
        plugins.load_function(reference, base=tmp_path, path="train.algorithm")
    assert caught.value.problems[0].path == "train.algorithm"


def test_the_users_traceback_is_shortened(tmp_path):
    (tmp_path / "mine_broken.py").write_text("def f():\n    return 1 / 0\n")
    broken = plugins.load_function("mine_broken:f", base=tmp_path, path="train.algorithm")
    with pytest.raises(UserCodeFailed) as caught, plugins.user_code("train.algorithm"):
        broken()
    assert "ZeroDivisionError" in str(caught.value)
    assert "mine_broken.py" in str(caught.value)
    assert "modelkeep/core/plugins.py" not in str(caught.value)
