"""``plan``: compare the declaration with what is, and say what would run and why. Changes nothing."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from modelkeep.data.snapshots import Snapshots
from modelkeep.lifecycle import deployment, stages
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.progress import Stage
from modelkeep.registry import snapshots
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration
from modelkeep.store import stages as cache


class Plan(Struct, frozen=True):
    """What ``apply`` would do, stage by stage."""

    model: str
    stages: tuple[Stage, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return all(stage.action == "reuse" for stage in self.stages)


def plan(keep: Keep, declaration: Declaration) -> Plan:
    """What ``apply`` would do for this declaration.

    Raises:
        Invalid: The source is not there or cannot be read.
    """
    model = declaration.model
    with keep.db.read() as conn:
        newest = snapshots.latest(conn, model)
        before = cache.latest(conn, model, "declaration")
    changes = stages.differences(before[1] if before else None, loading.to_builtins(declaration))
    waiting = Snapshots(keep.db, keep.blobs).changed(declaration.data, model, keep.base)
    if newest is None or waiting:
        because = _new(waiting) if newest is not None else "there is no snapshot yet"
        return Plan(model, (Stage("snapshot", "run", because), *_all_run(changes)))
    first = Stage("snapshot", "reuse", f"the source is unchanged: {newest.rows} rows, {newest.digest[:12]}")
    keys = stages.keys(declaration, newest.digest, keep.base)
    with keep.db.read() as conn:
        known: dict[str, dict[str, Any] | None] = {
            name: cache.recall(conn, getattr(keys, name)) for name in ("prepare", "train", "evaluate", "version")
        }
        made = known["version"]
        rest = [_stage(name, changes, known, made) for name in stages.NAMES[1:-1]]
        settled = deployment.settled(conn, declaration, made, keep.base, changed=bool(changes))
    rollout = Stage("rollout", "run" if settled.because else "reuse", settled.because or settled.state)
    return Plan(model, (first, *rest, rollout))


def _new(partitions: list[str]) -> str:
    shown = ", ".join(partitions[:3])
    return f"new or changed: {shown}" + (f" and {len(partitions) - 3} more" if len(partitions) > 3 else "")


_KEY_OF = {
    "prepare": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "gate": "evaluate",
    "package": "version",
    "register": "version",
}


def _stage(
    name: str,
    changes: dict[str, tuple[Any, Any]],
    known: dict[str, dict[str, Any] | None],
    made: dict[str, Any] | None,
) -> Stage:
    if made is not None:
        return Stage(name, "reuse", f"version {made['version']} was made from exactly this")
    if known[_KEY_OF[name]] is not None:
        return Stage(name, "reuse", "done already, from exactly this")
    told = stages.touched(changes, name)
    if told:
        return Stage(name, "run", "; ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else ""))
    return Stage(name, "run", _inherited(name, changes))


def _inherited(name: str, changes: dict[str, tuple[Any, Any]]) -> str:
    earlier = stages.NAMES[1 : stages.NAMES.index(name)]
    for stage in reversed(earlier):
        if stages.touched(changes, stage):
            return f"{stage} runs"
    return "it has not been done from this data and code"


def _all_run(changes: dict[str, tuple[Any, Any]]) -> list[Stage]:
    told = []
    for before, name in zip(stages.NAMES, stages.NAMES[1:], strict=False):
        own = stages.touched(changes, name)
        told.append(Stage(name, "run", "; ".join([f"{before} runs", *own[:3]])))
    return told
