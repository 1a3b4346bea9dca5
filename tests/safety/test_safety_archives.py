"""Archives whose members climb out of any folder: whoever reads them, nothing is written outside."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safety_site import Site

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))

from runtime_cases import foreign
from serving_mlflow import answering

from forks import Forks
from modelkeep.core.errors import Damaged, Invalid, ModelkeepError, Refused
from modelkeep.engines import bundle
from modelkeep.formats import adopt, runtimes
from modelkeep.formats.manifest import MANIFEST, SAMPLE, SIGNATURE, Folder
from small import Project

UP = "../" * 20
"""Beyond the root from wherever an archive is unpacked."""
LINK = 0o120777 << 16
"""Of a zip's member that is a symbolic link."""

Member = tuple[str, bytes, bool]
"""Name, content, and whether it is a symbolic link to what it holds."""

SHAPES: dict[str, Callable[[Path], list[Member]]] = {
    "climbing": lambda out: [(f"{UP}{_below(out)}/x", b"{}", False)],
    "climbing inside": lambda out: [(f"a/b/../{UP}{_below(out)}/x", b"{}", False)],
    "absolute": lambda out: [(f"{out}/x", b"{}", False)],
    "two slashes": lambda out: [(f"//{_below(out)}/x", b"{}", False)],
    "backslashes": lambda out: [(f"{UP}{_below(out)}/x".replace("/", "\\"), b"{}", False)],
    "a link out": lambda out: [("link", str(out).encode(), True)],
    "through a link": lambda out: [("link", str(out).encode(), True), ("link/x", b"{}", False)],
    "over a link": lambda out: [("link", f"{out}/x".encode(), True), ("link", b"{}", False)],
}


def _below(out: Path) -> str:
    return str(out).strip("/")


def zipped(members: list[Member], onto: bytes = b"", root: str = "") -> bytes:
    """A zip of these members, behind those of another one, all below ``root``."""
    made = io.BytesIO(onto)
    with zipfile.ZipFile(made, "a") as archive:
        for name, content, link in members:
            info = zipfile.ZipInfo(f"{root}{name}")
            info.external_attr = LINK if link else 0o644 << 16
            archive.writestr(info, content)
    return made.getvalue()


def tarred(members: list[Member], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content, link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, content.decode()
            else:
                info.size = len(content)
            archive.addfile(info, None if link else io.BytesIO(content))
    return made.getvalue()


KINDS: dict[str, Callable[[list[Member]], bytes]] = {
    "model.zip": zipped,
    "weights.npz": zipped,
    "model.skops": lambda members: zipped(members, model("skops")[1]),
    "model.pt2": lambda members: zipped(members, model("pt2")[1]),
    "model.tar": lambda members: tarred(members, "w"),
    "model.tar.gz": lambda members: tarred(members, "w:gz"),
}


def model(kind: str) -> tuple[str, bytes]:
    """Path and bytes of the archive in a folder that MLflow saved."""
    files = foreign(kind).files
    return next((name, data) for name, data in files.items() if name.endswith((".skops", ".pt2")))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder where members lead; nothing may be in it at the end."""
    folder = tmp_path / "outside"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_what_clients_store_is_not_unpacked(shape: str, place_of_all: Site, outside: Path) -> None:
    run = place_of_all.mlflow("root", "POST", "runs/create", experiment_id="0").json()["run"]["info"]["run_id"]
    for name, make in KINDS.items():
        content = make(SHAPES[shape](outside))
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/m/{name}"
        assert place_of_all.ask("root", "PUT", path, content=content).status_code == 200
        assert place_of_all.ask("root", "GET", path).content == content
    asked = {"run_id": run, "path": "m"}
    listed = place_of_all.ask("root", "GET", "/api/2.0/mlflow/artifacts/list", params=asked).json()["files"]
    assert {each["path"] for each in listed} == {f"m/{name}" for name in KINDS}


def saved(kind: str, folder: Path, archive: bytes) -> Path:
    """The folder that MLflow saved, with another archive in it."""
    place, _ = model(kind)
    for name, data in foreign(kind).files.items():
        if name not in (MANIFEST, SIGNATURE, SAMPLE):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive if name == place else data)
    return folder


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("shape", SHAPES)
def test_skops_files_with_members_that_climb(shape: str, outside: Path, tmp_path: Path) -> None:
    """They are read by name, in memory; what is not asked for is not looked at."""
    archive = zipped(SHAPES[shape](outside), model("skops")[1])
    folder = saved("skops", tmp_path / "m", archive)
    adopt.adopt(folder)
    runtimes.load(dict(Folder(folder)))


def test_a_skops_file_that_asks_for_a_member_outside(outside: Path, tmp_path: Path) -> None:
    """Its schema names the files of arrays; a name that leads out of the archive is not in the archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model("skops")[1])) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                content = _with_files(json.loads(content), f"{outside}/../secret.npy")
            new.writestr(name, content)
    (tmp_path / "secret.npy").write_bytes(b"secret")
    with pytest.raises((Damaged, Refused, Invalid)) as error:
        adopt.adopt(saved("skops", tmp_path / "m", made.getvalue()))
    assert "archive" in str(error.value) or "schema" in str(error.value) or "skops" in str(error.value)


def _with_files(schema: Any, path: str) -> bytes:
    """The schema with another path in the place of every file's."""

    def changed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: path if key == "file" else changed(value) for key, value in node.items()}
        return [changed(each) for each in node] if isinstance(node, list) else node

    return json.dumps(changed(schema)).encode()


def root_of(data: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()[0].partition("/")[0]


COMPILED = "data/aotinductor/model/"
"""Where PyTorch looks for programs to unpack to the disk, compile and run."""


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("below", ["", COMPILED])
@pytest.mark.parametrize("shape", SHAPES)
def test_pt2_files_with_members_that_climb(shape: str, below: str, outside: Path, tmp_path: Path) -> None:
    """PyTorch unpacks what is compiled to wherever it says; such a file is not loaded unless it is trusted."""
    _, good = model("pt2")
    folder = saved("pt2", tmp_path / "m", zipped(SHAPES[shape](outside), good, f"{root_of(good)}/{below}"))
    with pytest.raises(Refused, match=r"compiled in data/model\.pt2: .*(outside|link)"):
        adopt.adopt(folder)


def test_a_pt2_file_that_brings_source_to_compile(outside: Path, tmp_path: Path) -> None:
    _, good = model("pt2")
    source = f'#include <fstream>\n__attribute__((constructor)) void f() {{ std::ofstream("{outside}/x"); }}\n'
    flags = {"compiler": "g++", "cflags": ["shared", "fPIC"], "ldflags": ["shared"]}
    members = [
        ("a.wrapper.cpp", source.encode(), False),
        *((f"a.wrapper_{name}_flags.json", json.dumps(flags).encode(), False) for name in ("compile", "linker")),
        ("a.wrapper_metadata.json", b'{"AOTI_DEVICE_KEY": "cpu"}', False),
    ]
    folder = saved("pt2", tmp_path / "m", zipped(members, good, f"{root_of(good)}/{COMPILED}"))
    with pytest.raises(Refused, match=r"compiled in data/model\.pt2: .*a\.wrapper\.cpp"):
        adopt.adopt(folder)


def test_a_pt2_file_as_mlflow_writes_it_needs_no_trust(tmp_path: Path) -> None:
    folder = saved("pt2", tmp_path / "m", model("pt2")[1])
    assert adopt.adopt(folder).runtime == "torch"
    runtimes.load(dict(Folder(folder)))


@pytest.mark.parametrize("shape", SHAPES)
def test_modules_on_their_way_to_workers(shape: str, outside: Path) -> None:
    """They come from the user's own machine; all the same they stay in the folder made for them."""
    content = zipped([*SHAPES[shape](outside), ("own_module_of_climbing.py", b"VALUE = 1\n", False)])
    before = list(sys.path)
    with contextlib.suppress(ModelkeepError, OSError):
        bundle.install(bundle.digest_of(content), "", lambda: content)
    sys.path[:] = before


def test_a_version_that_climbs_is_not_deployed(tmp_path: Path, forks: Forks, outside: Path) -> None:
    """By the command that people give, of what a client registered."""
    from mlflow import MlflowClient

    project = Project(tmp_path / "project")
    project.folder.mkdir(exist_ok=True)
    project.declare()
    _, good = model("pt2")
    evil = zipped(SHAPES["climbing"](outside), good, f"{root_of(good)}/{COMPILED}")
    folder = saved("pt2", tmp_path / "m", evil)
    with project.opened() as keep, answering(keep) as address:
        client = MlflowClient(address, address)
        run = client.create_run("0").info.run_id
        client.log_artifacts(run, str(folder), "model")
        client.create_registered_model("climber")
        client.create_model_version("climber", f"runs:/{run}/model", run)
    code, said = forks.done(["deploy", "climber@1", "--json"], project.folder)
    error = json.loads(said)["error"]
    assert (code, error["kind"]) == (1, "refused")
    assert "compiled in data/model.pt2" in error["message"]
    assert "--trust" in error["hint"]
