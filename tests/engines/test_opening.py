"""From an address to an engine: what is refused, and how it says so."""

from __future__ import annotations

import socket
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from modelkeep.core import machine
from modelkeep.core.errors import Invalid, Refused, Unavailable
from modelkeep.engines import bundle, versions
from modelkeep.engines.opening import LIMIT, open_engine
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import Address, address, size


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("local", Address("local")),
        ("local://3", Address("local", workers=3)),
        ("ray", Address("ray")),
        ("ray://head:10001", Address("ray", "head", 10001)),
        ("dask://10.0.0.7", Address("dask", "10.0.0.7", 8786)),
        ("spark://[::1]:7077/", Address("spark", "[::1]", 7077)),
    ],
)
def test_an_address_is_taken_apart(text, meant):
    assert address(text) == meant
    assert address(str(meant)) == meant


@pytest.mark.parametrize(
    "text", ["", "lokal", "ray://", "ray://a b", "dask", "spark://h:0", "local://x", "ray://h:1:2"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(Invalid) as caught:
        address(text)
    assert caught.value.problems[0].path == "engine"


def test_sizes():
    assert (size("4GB"), size("1.5 GiB"), size("512mb")) == (4 * 10**9, 1610612736, 512 * 10**6)
    for text in ("", "4", "GB", "0GB", "-1GB", "1e9GB"):
        with pytest.raises(Invalid, match="is not a size"):
            size(text)


def test_resources_bound_how_many_parts_the_local_engine_works_on_at_once(monkeypatch):
    monkeypatch.setenv(machine.VISIBLE, "0,1,2")
    cores = machine.cores()
    with open_engine("local", resources=Resources(cpu=cores)) as one:
        assert one.slots() == 1
    with open_engine("local://3", resources=Resources(memory="1MB")) as three:
        assert three.slots() == 3
    with open_engine("local", workers=1) as alone:
        assert list(alone.map(str, [1])) == ["1"]
    for resources, path in (
        (Resources(cpu=4096), "cpu"),
        (Resources(memory="900TB"), "memory"),
        (Resources(gpu=4), "gpu"),
    ):
        with pytest.raises(Refused, match=f"resources.{path}: this machine has .*, and one part asks for"):
            open_engine("local", resources=resources)
    for gpu, dealt in ((1, ("0", "1", "2")), (2, ("0,1",)), (0.5, ("0", "0", "1"))):
        with open_engine("local://3", resources=Resources(gpu=gpu)) as shared:
            assert shared._gpus == dealt
    monkeypatch.delenv(machine.VISIBLE)
    if not machine.gpus():
        with pytest.raises(Refused, match=r"resources.gpu: this machine has 0 GPUs, and one part asks for 0\.5"):
            open_engine("local", resources=Resources(gpu=0.5))


@pytest.mark.parametrize("kind", ["ray", "dask", "spark"])
def test_an_engine_that_does_not_answer_is_named_with_how_long_was_tried(kind):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening, and nobody else can
        where = f"{kind}://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Unavailable, match=rf"{where} does not answer: .*tried for 0.2 s"):
            open_engine(where, limit=0.2)


def test_the_limit_is_a_setting(monkeypatch):
    monkeypatch.setenv(LIMIT, "soon")
    with pytest.raises(Invalid, match="'soon' is not a number of seconds"):
        open_engine("local")


def test_versions_must_agree():
    here = versions.report()
    assert here["python"] == ".".join(map(str, sys.version_info[:3]))
    assert here["modelkeep"] and here["numpy"]
    versions.must_agree(here, here, "w")
    versions.must_agree({"numpy": "2.1.0"}, {"numpy": "2.1.7"}, "w")
    with pytest.raises(Refused) as caught:
        versions.must_agree(
            {"numpy": "2.1.0", "modelkeep": "0.1.0"}, {"numpy": "1.26.4", "modelkeep": "0.1.1"}, "node 7"
        )
    assert "node 7 has other versions" in str(caught.value)
    assert "numpy 2.1.0 here and 1.26.4 there" in str(caught.value)
    assert "modelkeep 0.1.0 here and 0.1.1 there" in str(caught.value)


def test_the_modules_beside_a_declaration_are_bundled_and_an_environment_is_not(tmp_path):
    for name in ("own.py", "pkg/inside.py", ".venv/lib/x.py", "env/lib/y.py", "pkg/__pycache__/z.py", "data.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("VALUE = 1")
    (tmp_path / "env/pyvenv.cfg").write_text("")
    content = bundle.gather(tmp_path)
    assert sorted(zipfile.ZipFile(BytesIO(content)).namelist()) == ["own.py", "pkg/inside.py"]
    assert bundle.gather(tmp_path) == content, "equal code has an equal digest"


def test_too_much_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "BYTES", 10)
    (tmp_path / "large.py").write_text("x = " + "1" * 20)
    with pytest.raises(Invalid, match="a folder of their own"):
        bundle.gather(tmp_path)


def test_a_worker_takes_newer_code_in_place_of_older(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(bundle, "_INSTALLED", {})
    for value in (1, 2, 1):
        base = Path(tmp_path / "there")
        base.mkdir(exist_ok=True)
        (base / "modelkeep_own_module.py").write_text(f"VALUE = {value}")
        content = bundle.gather(base)
        bundle.install(bundle.digest_of(content), str(base), lambda content=content: content)
        import modelkeep_own_module

        assert value == sys.modules["modelkeep_own_module"].VALUE
    sys.modules.pop("modelkeep_own_module")
    assert modelkeep_own_module
