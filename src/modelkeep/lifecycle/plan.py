"""``plan``: compare the declaration with what is, and say what would run and why. Changes nothing."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from modelkeep.data import changes as source
from modelkeep.lifecycle import deployment, stages
from modelkeep.lifecycle import made as made_of
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.made import Made
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
        NotFound: The source is not there.
        Conflict: The endpoint serves another model.
    """
    model = declaration.model
    with keep.db.read() as conn:
        deployment.own(conn, declaration)
        newest = snapshots.latest(conn, model)
        before = deployment.last_applied(conn, model)
    changes = stages.differences(before["declaration"] if before else None, loading.to_builtins(declaration))
    waiting = source.changed(keep.db, declaration.data, model, keep.base)
    if newest is None or waiting:
        because = _new(waiting) if newest is not None else "there is no snapshot yet"
        return Plan(model, (Stage("snapshot", "run", because), *_all_run(changes)))
    first = Stage("snapshot", "reuse", f"the source is unchanged: {newest.rows} rows, {newest.digest[:12]}")
    keys = stages.keys(declaration, newest.digest, keep.base)
    with keep.db.read() as conn:
        champion = made_of.champion(conn, model)
        made = made_of.recall(conn, keys, champion)
        done = {
            "prepare": cache.recall(conn, keys.prepare) is not None,
            "train": cache.recall(conn, keys.train) is not None,
            "evaluate": cache.recall(conn, made_of.compared(keys, champion)) is not None,
        }
        rest = [_stage(name, changes, done, made) for name in stages.NAMES[1:-1]]
        if made is not None and made.version is None:
            return Plan(model, (first, *rest, Stage("rollout", "reuse", "there is no new version")))
        settled = deployment.settled(conn, declaration, made.version if made else None, keep.base)
    rollout = Stage("rollout", "run" if settled.because else "reuse", settled.because or settled.state)
    return Plan(model, (first, *rest, rollout))


def _new(partitions: list[str]) -> str:
    shown = ", ".join(partitions[:3])
    return f"new or changed: {shown}" + (f" and {len(partitions) - 3} more" if len(partitions) > 3 else "")


def _stage(name: str, changes: dict[str, tuple[Any, Any]], done: dict[str, bool], made: Made | None) -> Stage:
    if made is not None:
        return Stage(name, "reuse", made.said)
    if done.get(name, False):
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
