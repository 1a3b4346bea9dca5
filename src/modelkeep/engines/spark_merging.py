"""Spark's own tree: what parts gave is grouped by shuffles, eight neighbours to a task, until one is left.

Like ``treeAggregate`` of Spark's RDDs, but in the order of the parts, so that sums are the same to the last bit as
anywhere else. What is lost with an executor Spark makes anew from what it knows of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from functools import partial
from typing import Any

from modelkeep.core.plugins import require
from modelkeep.engines import merging, remote, tasks
from modelkeep.engines.remote import Shared, Terms

LOOK = 0.25
"""Seconds between looks at the jobs, so that Ctrl-C comes through."""

Said = tuple[Any, ...]
"""An answer as a plain tuple."""


def merged(
    context: Any,
    threads: Executor,
    group: str,
    terms: Terms,
    parts: Sequence[tasks.Packet],
    merges: Merges,
    *,
    most: int,
) -> list[tasks.Answer]:
    """What the parts gave: all answers when they are small or one is a failure, else one, of all merged.

    Args:
        context: The ``SparkContext``.
        group: The name of the jobs' group; they are cancelled when this is interrupted.
        terms: What an executor must know.
        merges: Packets that merge so many results.
        most: Tasks of a stage; more parts than that share one, for a task costs more than most merges do.

    Raises:
        Exception: Spark's own, when a part lost its worker too often.
    """

    def jobs() -> list[tasks.Answer]:
        context.setJobGroup(group, "modelkeep: merging", interruptOnCancel=True)
        return _jobs(context, terms, parts, merges, most)

    future = threads.submit(jobs)
    try:
        while not future.done():
            wait([future], timeout=LOOK)
        return future.result()
    except BaseException:
        context.cancelJobGroup(group)
        raise


class Merges:
    """Packets that merge results, which are made as they are needed.

    Args:
        pack: Of the engine.
        merge: Associative and commutative.
    """

    def __init__(self, pack: Callable[[Any, Any], tasks.Packet], merge: Callable[[Any, Any], Any]) -> None:
        self._pack, self._merge = pack, merging.Merge(merge)

    def of(self, count: int) -> tuple[bytes, list[Any]]:
        """The packet's content, and the broadcasts of the user's modules."""
        packet = self._pack(self._merge, [(Shared(None, None), None) for _ in range(count)])
        return packet.content, [handle.ref for handle in packet.handles[:-count]]  # type: ignore[attr-defined]


def _jobs(
    context: Any, terms: Terms, parts: Sequence[tasks.Packet], merges: Merges, most: int
) -> list[tasks.Answer]:
    broadcasts = {id(handle): handle.ref for packet in parts for handle in packet.handles}  # type: ignore[attr-defined]
    work = [
        (number, packet.content, [id(handle) for handle in packet.handles]) for number, packet in enumerate(parts)
    ]

    def worked(item: tuple[int, bytes, list[int]]) -> tuple[int, Said]:
        number, content, needed = item
        loads = [partial(getattr, broadcasts[key], "value") for key in needed]
        return number, tuple(remote.run(terms, content, loads))

    level = held = context.parallelize(work, min(len(work), most)).map(worked)
    held.persist(require("pyspark", "spark").StorageLevel.MEMORY_AND_DISK)
    try:
        said = level.map(lambda pair: tuple(merging.told(tasks.Answer(*pair[1])))).collect()
        answers = [tasks.Answer(*one) for one in said]
        if all(answer.content for answer in answers) or not all(answer.worked for answer in answers):
            return answers
        count = len(work)
        while count > 1:
            groups = -(-count // merging.WIDTH)
            last = count - merging.WIDTH * (groups - 1)
            packets = {size: merges.of(size) for size in {last, min(count, merging.WIDTH)}}
            keyed = level.map(lambda pair: (pair[0] // merging.WIDTH, pair))
            level = keyed.groupByKey(min(groups, most), int).map(partial(_group, terms, packets))
            count = groups
        return [tasks.Answer(*answer) for _, answer in level.collect()]
    finally:
        held.unpersist()


def _group(terms: Terms, packets: dict[int, tuple[bytes, list[Any]]], item: tuple[int, Any]) -> tuple[int, Said]:
    """Neighbours merged, at an executor."""
    number, pairs = item
    contents = [answer[1] for _, answer in sorted(pairs)]
    content, code = packets[len(contents)]
    loads = [partial(getattr, one, "value") for one in code] + [partial(merging.load, one) for one in contents]
    return number, tuple(remote.run(terms, content, loads))
