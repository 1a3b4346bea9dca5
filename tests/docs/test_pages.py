"""Every code block in the README and the docs runs, loads, or says why it does not.

Before each block that is not plain output (`text`, `svg`) stands a comment:

    run                   bash or Python: runs in the page's folder, after the blocks before it
    run: fails            the same, and must end with an exit code other than 0
    run: background       bash: stays up until the page ends
    norun: WHY            does not run
    file: NAME            is written to the page's folder
    declaration           YAML: loads as a declaration
    declaration: NAME     the same, and is written to the page's folder
    part                  YAML: loads as a declaration together with a model and a source

A page starts in a folder with the examples of this project; a how-to guide, in one with the diabetes data and a
declaration that has been applied. The READMEs of the examples run in ``tests/examples``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engines.clusters import run_apart
from forks import Forks
from modelkeep.spec.loading import load_text
from small import until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SIGNATURES = {ROOT / "docs" / "architecture.md"}  # its Python blocks say what rooms offer each other
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *(
            page
            for page in (ROOT / "docs").rglob("*.md")
            if page not in SIGNATURES and page.parent.name != "reference"
        ),
        *EXAMPLES.glob("*/README.md"),
    ]
)
BLOCK = re.compile(
    r"^(?:<!--\s*(?P<mark>.*?)\s*-->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)
OUTPUT = {"text", "svg", ""}
VENV = Path(sys.executable).parent
COLD = {ROOT / "README.md"}
"""Pages whose commands are started as users start them; those of the others are forked, which is much quicker."""
CLUSTERS = {ROOT / "docs/how-to" / f"{name}.md" for name in ("ray", "dask", "spark")}
"""Pages that start a cluster: each is one script in a network of its own, where its ports are free, and what it
leaves running ends with it."""
BASE = {"model": "model: m\n", "data": "data: {source: rows.csv, target: y, key: id}\n"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def kind(self) -> str:
        return self.mark.partition(":")[0]

    @property
    def detail(self) -> str:
        return self.mark.partition(":")[2].strip()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["mark"] or "", found["language"], found["text"])
        for found in BLOCK.finditer(text)
    ]


@dataclass
class Reader:
    """Somebody who does what the page says, in a folder of their own."""

    folder: Path
    commands: Path
    ports: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        # other tests of this process may have used an mlflow client, which keeps its addresses in the environment
        others = ("MODELKEEP_", "MLFLOW_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return own | {"PATH": f"{self.commands}:{VENV}:{own['PATH']}", "COLUMNS": "120"}

    def run(self, block: Block) -> None:
        command = ["bash", "-euo", "pipefail", "-c", self.ported(block.text)]
        if block.language == "python":
            command = [str(self.commands / "python"), "-c", block.text]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        said = f"{block} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert (done.returncode != 0) == (block.detail == "fails"), said
        assert "Traceback" not in done.stderr, said

    def run_all(self, found: list[Block]) -> None:
        """Run a page's blocks in one shell, apart from the rest of the machine and from this user's home."""
        script = "".join(f"echo '{block}' >> blocks.txt\n{block.text}" for block in found)
        # short-lived Java: what a second compiler would win, it costs
        quick = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
        # a slow machine takes long to start a server
        patient = {"MODELKEEP_ENGINE_TIMEOUT": "240", "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "60"}
        with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # sockets have short names
            done = run_apart(
                ["bash", "-euo", "pipefail", "-c", script],
                seconds=550,
                must=True,
                cwd=self.folder,
                env=self.environment() | {"HOME": str(self.folder), "RAY_TMPDIR": short} | quick | patient,
            )
            logs = [(log.name, log.read_text(errors="replace")) for log in Path(short).glob("session_2*/logs/*.*")]
        said = f"ended with {done.returncode} in {(self.folder / 'blocks.txt').read_text()}\n{done.stdout[-5000:]}"
        said += "".join(f"\n--- {name}\n{text[-1500:]}" for name, text in logs)
        assert done.returncode == 0, said
        assert "Traceback" not in done.stdout, said

    def start(self, block: Block) -> None:
        """Run `modelkeep up` on ports that are free here, and wait until it answers."""
        assert block.text.strip() == "modelkeep up", f"{block}: only `modelkeep up` runs in the background"
        options = ("--port", "--serve-port", "--grpc-port")
        command = ["modelkeep", "up", "--json", *(word for option in options for word in (option, "0"))]
        said, log = self.folder / "up.json", self.folder / "up.txt"
        with said.open("wb") as out, log.open("wb") as err:
            child = subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdout=out, stderr=err)
        self.running.append(child)

        def told() -> dict[str, str]:
            assert child.poll() is None, log.read_text(errors="replace")
            line, end, _ = said.read_text().partition("\n")
            return dict(json.loads(line)) if end else {}

        addresses = until(told, limit=120)
        names = {"5000": "control", "8080": "serving", "8081": "grpc"}
        self.ports = {port: addresses[name].rpartition(":")[2] for port, name in names.items()}
        for port, path in (("5000", "/health"), ("8080", "/v2/health/ready")):
            until(lambda port=port, path=path: answers(f"http://127.0.0.1:{self.ports[port]}{path}"), limit=120)

    def ported(self, text: str) -> str:
        for told, used in self.ports.items():
            text = text.replace(f"localhost:{told}", f"localhost:{used}")
        return text

    def leave(self) -> None:
        for child in self.running:
            child.send_signal(signal.SIGTERM)
        for child in self.running:
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                raise


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=30).close()
    except OSError:
        return False
    return True


@pytest.fixture
def reader(tmp_path: Path, forks: Forks) -> Iterator[Reader]:
    found = Reader(tmp_path, forks.commands)
    yield found
    found.leave()


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where a how-to guide begins."""
    folder = tmp_path_factory.mktemp("applied")
    source = (EXAMPLES / "regression" / "modelkeep.yaml").read_text().replace("data/diabetes.csv", "diabetes.csv")
    (folder / "modelkeep.yaml").write_text(re.sub(r"  tune:\n(    .*\n)+", "", source))
    script = EXAMPLES / "regression" / "prepare.py"
    reader = Reader(folder, forks.commands)
    for command in (["python", str(script), "--folder", str(folder)], ["modelkeep", "apply"]):
        subprocess.run(command, cwd=folder, env=reader.environment(), check=True, capture_output=True)
    return folder


def completed(text: str) -> str:
    """The part with what else a declaration needs."""
    return text + "".join(line for key, line in BASE.items() if not re.search(rf"^{key}:", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_marked(page: Path) -> None:
    known = {"run", "norun", "file", "declaration", "part"}
    wrong = [f"{b}: {b.mark!r}" for b in blocks(page) if b.language not in OUTPUT and b.kind not in known]
    wrong += [f"{b}: norun without a reason" for b in blocks(page) if b.kind == "norun" and not b.detail]
    assert not wrong


@pytest.mark.parametrize(
    "block",
    [b for page in PAGES for b in blocks(page) if b.kind in ("declaration", "part")],
    ids=str,
)
def test_a_declaration_loads(block: Block) -> None:
    assert block.language == "yaml"
    load_text(completed(block.text) if block.kind == "part" else block.text, str(block))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.cluster] if page in CLUSTERS else [])
        for page in PAGES
        if not page.is_relative_to(EXAMPLES) and any(b.kind == "run" for b in blocks(page))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_does_what_it_says(page: Path, reader: Reader, request: pytest.FixtureRequest) -> None:
    if page.parent.name == "how-to":
        shutil.copytree(request.getfixturevalue("applied"), reader.folder, dirs_exist_ok=True)
    if page in COLD | CLUSTERS:
        reader.commands = VENV
    (reader.folder / "examples").symlink_to(EXAMPLES)
    if page in CLUSTERS:
        reader.run_all([block for block in blocks(page) if block.kind == "run"])
        return
    for block in blocks(page):
        if block.kind == "run" and block.detail == "background":
            reader.start(block)
        elif block.kind == "run":
            reader.run(block)
        elif block.detail and block.kind in ("file", "declaration"):
            (reader.folder / block.detail).write_text(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if re.match(r"[a-z]+:", target) or "reference/" in target:  # the reference is made by `make docs`
            continue
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
