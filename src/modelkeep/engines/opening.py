"""From an address to an engine."""

from __future__ import annotations

import os
from pathlib import Path

from modelkeep.core import machine, memory
from modelkeep.core.errors import Invalid, Refused
from modelkeep.core.machine import Need
from modelkeep.core.ports import Engine
from modelkeep.engines.local import LocalEngine
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import address as parse
from modelkeep.spec.engines import size

LIMIT = "MODELKEEP_ENGINE_TIMEOUT"
"""The environment variable with the seconds to wait for an engine; 30 when unset."""


def open_engine(
    address: str = "local",
    *,
    workers: int | None = None,
    code: Path | None = None,
    resources: Resources | None = None,
    limit: float | None = None,
) -> Engine:
    """Open an engine; ``close`` it when done.

    Args:
        address: ``local``, ``local://4``, ``ray``, ``ray://host:10001``, ``dask://host:8786``, ``spark``,
            ``spark://host:7077``.
        workers: At most so many processes of the local engine.
        code: A folder whose Python modules the workers must be able to import: the declaration's, when it names
            functions of its own.
        resources: What one part needs; one core when None.
        limit: Seconds to wait for an engine that does not answer.

    Raises:
        Invalid: There is no such engine.
        MissingExtra: Its library is not installed.
        Unavailable: It does not answer within the limit.
        Refused: Its workers have other versions of Python, modelkeep or key libraries, or lack the resources.
    """
    where, needed = parse(address), resources or Resources()
    limit = _limit() if limit is None else limit
    if where.kind == "local":
        return _local(where.workers, workers, needed)
    if where.kind == "ray":
        from modelkeep.engines.ray import RayEngine

        return RayEngine(where, code, needed, limit)
    if where.kind == "dask":
        from modelkeep.engines.dask import DaskEngine

        return DaskEngine(where, code, needed, limit)
    from modelkeep.engines.spark import SparkEngine

    return SparkEngine(where, code, needed, limit)


def _local(addressed: int | None, workers: int | None, needed: Resources) -> LocalEngine:
    there = machine.here()
    need = Need(needed.cpu, size(needed.memory) if needed.memory else 0, needed.gpu)
    asked = (
        ("cpu", need.cpu, there.cores, f"{there.cores} cores", f"{need.cpu:g}"),
        ("memory", need.memory, there.memory, memory.shown(there.memory), needed.memory),
        ("gpu", need.gpu, len(there.gpus), f"{len(there.gpus)} GPUs", f"{need.gpu:g}"),
    )
    for name, each, whole, has, text in asked:
        if each > whole:
            raise Refused(
                f"resources.{name}: this machine has {has}, and one part asks for {text}",
                hint="ask for less, or set engine to a cluster that has as much",
            )
    most = min((count for count in (addressed, workers) if count is not None), default=None)
    parts = there.parts(need, most=most)
    return LocalEngine(parts, gpus=machine.dealt(there.gpus, need, parts))


def _limit() -> float:
    text = os.environ.get(LIMIT, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise Invalid(f"{text!r} is not a number of seconds above 0", path=LIMIT)
    return seconds
