"""Real clusters of two machines each, started on this one, for the tests of engines and of their pages."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import psutil
import pytest

TESTS = Path(__file__).resolve().parents[1]
APART = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""A network of its own, for Ray listens wherever it can; and nothing outlives the test, whatever happens."""
ALIEN = ("unshare", "--mount", "--uts")
"""Disks and a name of its own."""
HEAD, NODE, THIRD = "10.77.0.1", "10.77.0.2", "10.77.0.3"
CABLE = ("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
NEAR, FAR = "10.78.0.1", "10.78.0.2"


class Cluster(NamedTuple):
    """A cluster.

    Attributes:
        address: Of the engine.
        lose: Kills one of its two machines, with all its processes, without a word.
        another: Starts a third machine (of two threads on Dask), and kills it at the end in the same way.
    """

    address: str
    lose: Callable[[], None]
    another: Callable[[], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]


@functools.cache
def may_be_apart() -> bool:
    """Whether this process may make a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run([*APART, "ip", "link", "set", "lo", "up"], capture_output=True, check=False, timeout=60)
    return tried.returncode == 0


@functools.cache
def may_be_linked() -> bool:
    """Whether it may also link two such networks."""
    return may_be_apart() and subprocess.run([*APART, *CABLE], check=False, timeout=60).returncode == 0


def run_apart(
    command: list[str], *, seconds: float, must: bool, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command in a network of its own; skip the test where that is not allowed but a must."""
    if may_be_apart():
        up = " && ".join(f"ip address add {own}/32 dev lo" for own in (HEAD, NODE, THIRD))
        command = [*APART, "sh", "-c", f'ip link set lo up && {up} && exec "$@"', "sh", *command]
    elif must:
        pytest.skip(
            "Ray listens on every interface, and this machine allows no network of its own (unshare --net)"
        )
    return subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=seconds,
        **options,
    )


def holds_inside(file: str, *, must: bool = False) -> None:
    """Every test of a file beside this one passes, in a process of its own apart from the rest of the machine."""
    path = str(TESTS / "engines" / file)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", path]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = run_apart(command, seconds=850, must=must, env=env, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout


@contextlib.contextmanager
def ray_cluster(folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Cluster]:
    """Two nodes of one core each, with ``more`` in their environment. Only in a network of its own."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token that Ray once left in the home folder is asked for
    os.environ["RAY_CLIENT_RECONNECT_GRACE_PERIOD"] = "15"  # so long a lost session is looked for
    env = {**environment(), **more, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_DASHBOARD_LOG_INFO": "1"}
    env["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "60"  # a slow machine takes long to start a server
    env["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # so often a trainer looks whether its workers have ended
    env["RAY_health_check_period_ms"] = "1000"  # a node that is gone is so after five looks
    env["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # else a server may die while it is forked (ray#63202)
    ray = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        "--block",
        "--num-cpus=1",
    ]
    ray += ["--object-store-memory=150000000", "--disable-usage-stats"]
    # sockets have short names; two that are apart may have the same process number
    short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    head = [f"--node-ip-address={HEAD}", "--head", "--port=6379", "--ray-client-server-port=10001"]
    with _processes(folder, env) as start:
        start([*ray, *head, "--include-dashboard=false", f"--temp-dir={short}"])
        _listening(HEAD, 6379)
        node, third = ([*ray, f"--node-ip-address={own}", f"--address={HEAD}:6379"] for own in (NODE, THIRD))
        second = start(node)
        _listening(HEAD, 10001)
        yield Cluster(f"ray://{HEAD}:10001", functools.partial(kill, second), _lived(start, third))
    shutil.rmtree(short, ignore_errors=True)


@contextlib.contextmanager
def dask_cluster(folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Cluster]:
    """A scheduler and two workers of one thread each."""
    port = _free_port()
    env = {**environment(), **more, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with _processes(folder, env) as start:
        start(dask("scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"))
        _listening("127.0.0.1", port)
        commands = [dask_worker(port, folder / f"worker{number}", 1 + (number == 2)) for number in range(3)]
        workers = [start(command) for command in commands[:2]]
        yield Cluster(f"dask://127.0.0.1:{port}", functools.partial(kill, workers[1]), _lived(start, commands[2]))


@contextlib.contextmanager
def dask_afar(folder: Path) -> Iterator[str]:
    """A scheduler here and a worker in another network, linked by a cable: it shares no loopback with this one.

    The address is that of this machine's own loopback, where the scheduler answers too. Only in a network apart.
    """
    port = _free_port()
    for line in (
        CABLE,
        ("ip", "address", "add", f"{NEAR}/24", "dev", "near"),
        ("ip", "link", "set", "near", "up"),
    ):
        subprocess.run(line, check=True)
    plugged = f"until ip link set far up; do sleep 0.1; done; ip link set lo up; ip address add {FAR}/24 dev far"
    where = (f"tcp://{NEAR}:{port}", f"--host={FAR}", f"--local-directory={folder / 'worker'}", "--nthreads=1")
    worker = dask("worker", *where, "--no-dashboard", "--nworkers=2", "--memory-limit=2GB")
    with _processes(folder, environment()) as start:
        start(dask("scheduler", "--host=0.0.0.0", f"--port={port}", "--no-dashboard"))
        _listening("127.0.0.1", port)
        far = start(["unshare", "--net", "sh", "-c", f'{plugged} && exec "$@"', "sh", *worker])

        def moved() -> bool:
            subprocess.run(["ip", "link", "set", "far", "netns", str(far.pid)], check=False, capture_output=True)
            return subprocess.run(["ip", "link", "show", "far"], check=False, capture_output=True).returncode != 0

        wait_for(moved)
        try:
            yield f"dask://127.0.0.1:{port}"
        finally:  # it would be gone only a while after the worker's network, and the next is called the same
            subprocess.run(("ip", "link", "delete", "near"), check=False, capture_output=True)


def dask(what: str, *arguments: str) -> list[str]:
    """The command of a Dask process."""
    return [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]


def dask_worker(port: int, folder: Path, threads: int) -> list[str]:
    """The command of a worker."""
    where = (f"tcp://127.0.0.1:{port}", "--host=127.0.0.1", f"--local-directory={folder}")
    return dask("worker", *where, f"--nthreads={threads}", "--no-dashboard", "--memory-limit=2GB")


@functools.cache
def may_hide() -> bool:
    """Whether this process may have another see other disks than it does."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    tried = subprocess.run([*ALIEN, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@contextlib.contextmanager
def apart_cluster(folder: Path, hidden: Path) -> Iterator[str]:
    """A Dask cluster's address: of its two workers, one calls its machine ``other`` and has another folder at
    ``hidden``."""
    port = _free_port()
    with _processes(folder, environment()) as start:
        start(dask("scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"))
        _listening("127.0.0.1", port)
        start(dask_worker(port, folder / "worker0", 1))
        script = 'hostname other && mount -t tmpfs none "$0" && exec "$@"'
        start([*ALIEN, "sh", "-c", script, str(hidden), *dask_worker(port, folder / "worker1", 1)])
        yield f"dask://127.0.0.1:{port}"


@contextlib.contextmanager
def spark_cluster(folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Cluster]:
    """A standalone master and two workers of one core each; everything listens on this machine only."""
    import pyspark

    from modelkeep.engines import spark_java

    spark_java.find()
    conf = folder / "conf"
    conf.mkdir()
    (conf / "spark-defaults.conf").write_text(
        "spark.executor.memory 512m\nspark.driver.memory 512m\nspark.task.maxFailures 2\n"
    )
    # short-lived: what a second compiler would win, it costs
    quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss512k"
    os.environ.update(SPARK_CONF_DIR=str(conf), JDK_JAVA_OPTIONS=quick)
    port = _free_port()
    env = {
        **environment(),
        **more,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "128m",
        "PYSPARK_PYTHON": sys.executable,
    }
    main = [str(Path(pyspark.__file__).parent / "bin/spark-class")]
    with _processes(folder, env) as start:
        here = ("--host", "127.0.0.1", "--webui-port", "0")
        start([*main, "org.apache.spark.deploy.master.Master", *here, "--port", str(port)])
        _listening("127.0.0.1", port)
        worker = [*main, "org.apache.spark.deploy.worker.Worker", *here, "--cores", "1", "--memory", "1g"]
        folders = [str(folder / f"worker{number}") for number in range(3)]
        commands = [[*worker, "--work-dir", own, f"spark://127.0.0.1:{port}"] for own in folders]
        workers = [start(command) for command in commands[:2]]
        yield Cluster(f"spark://127.0.0.1:{port}", functools.partial(kill, workers[1]), _lived(start, commands[2]))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


@contextlib.contextmanager
def _processes(folder: Path, env: dict[str, str]) -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        with (folder / f"{len(started)}.log").open("wb") as log:
            started.append(
                subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            )
        return started[-1]

    try:
        yield start
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
        raise
    finally:
        for process in reversed(started):
            kill(process)


def command(process: psutil.Process) -> list[str]:
    """What a process was started with; nothing when it has gone."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def kill(process: subprocess.Popen[bytes]) -> None:
    """A machine's end: all its processes at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(30)


def _lived(
    start: Callable[[list[str]], subprocess.Popen[bytes]], command: list[str]
) -> Callable[[], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]:
    @contextlib.contextmanager
    def lived() -> Iterator[subprocess.Popen[bytes]]:
        process = start(command)
        try:
            yield process
        finally:
            kill(process)

    return lived


def _listening(host: str, port: int) -> None:
    def listens() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=5).close()
            return True
        return False

    wait_for(listens, 90)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment() -> dict[str, str]:
    """Workers import the suite's functions by name."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
