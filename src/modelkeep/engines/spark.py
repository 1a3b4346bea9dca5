"""Spark: a task per part, shared objects broadcast (https://spark.apache.org).

Parts that wait are started together, as the tasks of one job, for a job costs far more than a task. Answers do not
wait for their job's end: each comes with its task, through an accumulator.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modelkeep.core.errors import Refused, Unavailable
from modelkeep.core.here import Here
from modelkeep.core.plugins import require
from modelkeep.engines import (
    boosting,
    boosting_spark,
    flow,
    merging,
    remote,
    room,
    spark_has,
    spark_java,
    spark_merging,
    tasks,
    versions,
)
from modelkeep.engines.remote import RemoteEngine, Shared, Terms
from modelkeep.engines.spark_heard import Heard
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import Address, size

if TYPE_CHECKING:
    from modelkeep.engines.spark_frames import SparkFrames

T = TypeVar("T")
R = TypeVar("R")

THREADS = 256
"""Jobs that are waited for at once."""
NOTICE = 8.0
"""Seconds in which Spark says that an executor is gone; where a whole machine is, it waits 5 for a reason."""
_MORE = {
    "cpu": "give the executors more cores (spark.executor.cores)",
    "memory": "give the executors more (spark.executor.memory)",
    "gpu": "start workers that have some (spark.worker.resource.gpu.amount)",
}
_DEATHS = ("Python worker exited unexpectedly", "ExecutorLostFailure", "was lost", "cancelled", "FetchFailed")


class SparkEngine(RemoteEngine):
    """Works on a Spark cluster, or in a local Spark on all cores.

    A session that the process already has is used as it is, and left as it was.

    Args:
        address: ``spark://master:7077``; without a host, Spark runs on this machine.
        code: A folder of the user's modules.
        resources: Of one part: ``cpu`` becomes ``spark.task.cpus``, ``gpu`` ``spark.task.resource.gpu.amount``;
            ``memory`` bounds how many parts are under way.
        limit: Seconds to wait for the cluster.

    Attributes:
        session: The ``SparkSession``.

    Raises:
        MissingExtra: PySpark is not installed.
        Unavailable: There is no Java, the master does not answer, or no executor comes.
        Refused: Versions differ, or no executor has the cores that one part asks for.
    """

    ahead = 4  # so many tasks per core share the cost of a job

    def __init__(self, address: Address, code: Path | None, resources: Resources, limit: float) -> None:
        self._spark = require("pyspark", "spark")
        super().__init__(str(address), require("pyspark.cloudpickle", "spark"), resources, limit)
        spark_java.find()
        if address.host:
            remote.reachable(self.address, address.host, address.port, limit)
        sql = require("pyspark.sql", "spark").SparkSession
        found = sql.getActiveSession()
        self._ours = found is None
        self._numbers, self._group = itertools.count(), f"modelkeep-{uuid.uuid4().hex}"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="modelkeep-spark")
        self._waiting: list[_Part] = []
        self._jobs: list[_Job] = []
        self._closed = False
        self.session = found or self._begin(sql.builder, address)
        self._context = self.session.sparkContext
        try:
            self._check()
            self.ship(code)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """Where executors find the driver, as Spark's own configuration says."""
        if self._context._jsc.sc().isLocal():
            return "127.0.0.1"
        return str(self._context.getConf().get("spark.driver.host"))

    def count(self) -> int:
        """Parts at once on the executors that are there; 0 when there are none."""
        scala = self._context._jsc.sc()
        if not scala.isLocal() and scala.getExecutorMemoryStatus().size() < 2:
            return 0  # the driver alone
        each = max(1, int(self.resources.cpu))
        fits = sum(cores // each for cores in spark_has.cores(self._context))
        if self.resources.memory:
            each = spark_has.memory(self._context) // size(self.resources.memory)
            fits = min(fits, len(self._executors()) * each)
        return max(1, fits)

    def share(self, obj: Any) -> Shared:
        """Broadcast an object; each executor gets it once."""
        return Shared(self._context.broadcast(obj), obj)

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged at the executors while it is large."""
        if len(parts) <= merging.WIDTH:
            return Here().reduce(merge, self.map(fn, parts))
        group, packets = f"{self._group}-{next(self._numbers)}", [self.pack(fn, part) for part in parts]
        merges = spark_merging.Merges(self.pack, merge)
        try:
            answers = spark_merging.merged(
                self._context,
                self._threads,
                group,
                self._terms,
                packets,
                merges,
                most=self.ahead * self.slots(),
            )
        except Exception as error:
            if self._lost(error):
                raise flow.killed() from error
            raise
        found: R = Here().reduce(merge, map(tasks.opened, answers))
        return found

    def frames(self) -> SparkFrames:
        """A place for relational work."""
        from modelkeep.engines.spark_frames import SparkFrames

        return SparkFrames(self.session)

    def submit(self, packet: tasks.Packet) -> flow.Running:
        """Start a task, with the next job."""
        part = _Part(packet, Future())
        with self._lock:
            self._waiting.append(part)
        self._threads.submit(self._start)

        def cancel() -> None:
            with self._lock:  # or its job could take it along unseen
                part.wanted = False
            if part.job is not None:
                self._settle(part.job)

        return flow.Running(part.answer, cancel)

    def boost(self, estimator: Any, matrix: Any, target: Any) -> Any:
        """Fit XGBoost's or LightGBM's estimator, each task a share of the rows.

        By this process where executors come and go with the work (``spark.dynamicAllocation.enabled``), for Spark
        has no barrier stages there.
        """
        if self._context.getConf().get("spark.dynamicAllocation.enabled") == "true":
            return estimator.fit(matrix, target)
        name = boosting.library(estimator)

        def fit(executors: list[str]) -> Any:
            for told in self._told(partial(boosting.installed, name)):
                boosting.must_have(name, told, f"{self.address}: an executor")
            group = f"{self._group}-trees-{next(self._numbers)}"
            try:
                return boosting.unless_lost(
                    lambda: boosting_spark.fit(self._context, group, self._at_once(), estimator, matrix, target),
                    lambda: not self._executors().issuperset(executors),
                )
            finally:
                self._context.cancelJobGroup(group)

        return boosting.repeated(
            fit,
            self._some_executors,
            self.address,
            NOTICE,
            own=partial(boosting.said_here, estimator, matrix, target),
        )

    def close(self) -> None:
        """Cancel what runs, and end the session if it was begun here."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ours:
            self.session.stop()

    def _start(self) -> None:
        """Start what waits, unless jobs are under way that keep the workers busy: their end starts it."""
        with self._lock:
            open_ = sum(part.open for job in self._jobs for part in job.parts)
            if not self._waiting or (len(self._jobs) > 1 and open_ >= self._count):
                return
            job = _Job(f"{self._group}-{next(self._numbers)}", [part for part in self._waiting if part.wanted])
            self._waiting.clear()
            for part in job.parts:
                part.job = job
            self._jobs.append(job)
        try:
            self._work(job)
        except Exception as error:
            for part in job.parts:
                if part.open:
                    remote.settled(part.answer, partial(_raise, error), self._lost)
        with self._lock:
            self._jobs.remove(job)
        self._start()

    def _work(self, job: _Job) -> None:
        terms, parts = self._terms, [(number, part.packet) for number, part in enumerate(job.parts)]
        broadcasts = {id(handle): handle.ref for _, packet in parts for handle in packet.handles}  # type: ignore[attr-defined]
        work = [(number, packet.content, [id(handle) for handle in packet.handles]) for number, packet in parts]
        answers = self._context.accumulator([], Heard(partial(self._answered, job)))

        def each(item: tuple[int, bytes, list[int]]) -> None:
            number, content, needed = item
            answers.add([(number, _run(terms, content, [broadcasts[key] for key in needed]))])

        if work:
            self._context.setJobGroup(job.group, "modelkeep", interruptOnCancel=True)
            self._context.parallelize(work, len(work)).foreach(each)

    def _answered(self, job: _Job, number: int, answer: tuple[Any, ...]) -> None:
        part = job.parts[number]
        if part.open:
            part.answer.set_result(tasks.Answer(*answer))
        self._settle(job)

    def _settle(self, job: _Job) -> None:
        """End a job that nobody waits for any more."""
        if not any(part.open and part.wanted for part in job.parts):
            self._threads.submit(self._cancel, job.group)

    def _cancel(self, group: str) -> None:
        self._context._jsc.sc().cancelJobGroupAndFutureJobs(group)  # Spark may not have heard of its job yet

    def _begin(self, builder: Any, address: Address) -> Any:
        """A session with what modelkeep needs; all else is as Spark's own configuration says."""
        needed = self.resources
        here = remote.way_to(address.host, address.port) if address.host else "127.0.0.1"
        if here.startswith("127."):
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        options = {
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.bindAddress": here,
            "spark.driver.host": here,
            "spark.task.cpus": str(max(1, int(needed.cpu))),
            "spark.log.level": "FATAL",
        }
        if needed.gpu:
            options["spark.task.resource.gpu.amount"] = f"{needed.gpu:g}"
            options["spark.executor.resource.gpu.amount"] = str(max(1, int(needed.gpu)))
        # the second number: how often a task may fail, which a local Spark otherwise never repeats
        master = f"spark://{address.host}:{address.port}" if address.host else "local[*,4]"
        builder = builder.master(master).appName("modelkeep")
        for name, value in options.items():
            builder = builder.config(name, value)
        try:
            return builder.getOrCreate()
        except Exception as error:
            if "cpus per task" in str(error):
                raise Refused(
                    f"resources.cpu: one part asks for {needed.cpu:g}; {self.address}: {_first(error)}",
                    hint=f"ask for less, or {_MORE['cpu']}",
                ) from None
            raise Unavailable(f"the engine {self.address} failed to begin: {_first(error)}") from error

    def _check(self) -> None:
        """Executors say what is installed there, one task per core."""
        here, where = versions.report(), f"{self.address}: an executor"
        self._must_fit(may_come=self._ours)
        asked = self._threads.submit(self._told, versions.report)
        try:
            told = asked.result(self.limit)
        except NotYet:
            self._context.cancelJobGroup(self._group)
            self._must_fit(may_come=False)  # those that have come may have less than their workers
            raise Unavailable(
                f"{self.address}: no executor did a first task within {self.limit:g} seconds",
                hint="see whether the cluster has free cores and memory for one, and can connect to this machine",
            ) from None
        except Exception as error:
            text = str(error)
            if "PYTHON_VERSION_MISMATCH" in text or "different version" in text:
                raise Refused(
                    f"{where} has another version of Python than this process, {here['python']}",
                    hint="set PYSPARK_PYTHON to the same Python on both sides",
                ) from error
            if "No module named 'modelkeep'" in text:
                raise Refused(
                    f"{self.address}: modelkeep cannot be imported at the executors",
                    hint='pip install "modelkeep[spark]" there, in the same version as here',
                ) from error
            raise Unavailable(f"{self.address}: a first task failed: {_first(error)}") from error
        for one in told:
            versions.must_agree(here, one, where)

    def _told(self, what: Callable[[], dict[str, str]]) -> list[dict[str, str]]:
        """What executors say, one task per core."""
        self._context.setJobGroup(self._group, "modelkeep: versions", interruptOnCancel=True)
        cores = self._context.defaultParallelism
        told: list[dict[str, str]] = self._context.parallelize(range(cores), cores).map(lambda _: what()).collect()
        return told

    def _must_fit(self, *, may_come: bool) -> None:
        """See that an executor has room for one part: one that is there, or that a worker there may begin."""
        rooms = spark_has.rooms(self._context)
        if may_come:
            rooms += spark_has.workers(self._context)
        room.must_fit(self.resources, rooms, f"no executor of {self.address}", _MORE)

    def _executors(self) -> set[str]:
        return spark_has.executors(self._context)

    def _some_executors(self) -> set[str]:
        """Those that are there; Spark begins others in place of lost ones, which takes a while."""
        until = time.monotonic() + self.limit
        while not (found := self._executors()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _at_once(self) -> int:
        """How many tasks of one stage can run at the same time."""
        scala = self._context._jsc.sc()
        usual = scala.resourceProfileManager().resourceProfileFromId(0)
        return max(1, min(self.count(), int(scala.maxNumConcurrentTasks(usual))))

    def _lost(self, error: Exception) -> bool:
        text = str(error)
        return isinstance(error, flow.Lost) or any(death in text for death in _DEATHS)


@dataclass(eq=False)
class _Part:
    packet: tasks.Packet
    answer: Future[tasks.Answer]
    wanted: bool = True
    job: _Job | None = None

    @property
    def open(self) -> bool:
        return not self.answer.done()


@dataclass(eq=False)
class _Job:
    group: str
    parts: list[_Part]


def _raise(error: Exception) -> None:
    raise error


def _run(terms: Terms, content: bytes, broadcasts: list[Any]) -> tuple[Any, ...]:
    return tuple(remote.run(terms, content, [lambda one=one: one.value for one in broadcasts]))  # type: ignore[misc]


def _first(error: Exception) -> str:
    """What it says; of an error in Java, that and not the call that it came of."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("An error occurred while calling"):
        lines = [lines[1].removeprefix(": ").rpartition("Exception: ")[2]]
    return lines[0][:300] if lines else type(error).__name__
