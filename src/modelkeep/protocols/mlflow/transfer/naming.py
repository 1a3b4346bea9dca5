"""Which number and name each experiment and model gets here, and what stands in the way."""

from __future__ import annotations

from collections.abc import Container, Iterable

from msgspec import Struct
from sqlalchemy import Connection, select

from modelkeep.core.errors import Conflict
from modelkeep.protocols.mlflow import checks
from modelkeep.protocols.mlflow.transfer import arrive
from modelkeep.protocols.mlflow.transfer.records import Experiment
from modelkeep.store import tables

_HINT = "give them other names and free numbers with --rename, or put --prefix NAME- before all names"


class Place(Struct, frozen=True):
    """Where an experiment goes: its number here (None: the next free one) and its name."""

    number: int | None
    name: str


def experiments(
    conn: Connection, origin: str, given: Iterable[Experiment], *, prefix: str, rename: bool
) -> dict[int, Place]:
    """By number there. Numbers are kept where they are free.

    Raises:
        Conflict: A number or name belongs to another experiment, and none may be changed.
    """
    known = arrive.marked(conn, origin, "experiment")
    by_number = {row.id: row for row in conn.execute(select(tables.experiments))}
    taken = {row.name: row.id for row in by_number.values()}
    found: dict[int, Place] = {}
    problems = []
    for each in given:
        name = prefix + each.name
        here = by_number.get(each.id)
        if str(each.id) in known:
            number = int(known[str(each.id)].target)
            if taken.get(name, number) != number:  # it was renamed there to a name that is in use here
                name = by_number[number].name if number in by_number else free(name, taken)
            found[each.id] = Place(number, name)
        elif _same(each, name, here):
            found[each.id] = Place(each.id, name)
        elif (here is not None or name in taken) and not (rename or prefix):
            problems.append(_clash(each, here.name if here is not None else "", taken.get(name)))
        elif name in taken and not rename:
            problems.append(f"experiment {name!r}: the name belongs to number {taken[name]} here")
        else:
            found[each.id] = Place(None if here is not None else each.id, free(name, taken))
        if each.id in found:
            taken[found[each.id].name] = -1
    if problems:
        raise _conflict(problems)
    return found


def models(
    conn: Connection, origin: str, given: Iterable[tuple[str, int]], *, prefix: str, rename: bool
) -> dict[str, str]:
    """Name here by name there, of (name, time it was made).

    Raises:
        Conflict: A name belongs to another model, and none may be changed.
        Invalid: The prefix cannot be part of a model's name.
    """
    if prefix:
        checks.model_name(prefix)
    known = arrive.marked(conn, origin, "model")
    made = {row.name: row.created_ms for row in conn.execute(select(tables.models))}
    found: dict[str, str] = {}
    problems = []
    for name, created_ms in given:
        wanted = prefix + name
        if name in known:
            found[name] = known[name].target
        elif wanted not in made or made[wanted] == created_ms:
            found[name] = wanted
        elif rename:
            found[name] = free(wanted, made)
        else:
            problems.append(f"model {wanted!r}: there is another one of this name here")
        made.setdefault(found.get(name, wanted), -1)
    if problems:
        raise _conflict(problems)
    return found


def free(name: str, taken: Container[str]) -> str:
    """``name``, else ``name-imported``, ``name-imported-2``, ...: the first that is not taken."""
    tried, number = name, 0
    while tried in taken:
        number += 1
        tried = f"{name}-imported" if number == 1 else f"{name}-imported-{number}"
    return tried


def _same(given: Experiment, name: str, here: object) -> bool:
    """Whether it is the one that is here: everybody's first one, or made at the same moment."""
    if here is None or getattr(here, "name", None) != name:
        return False
    return given.id == 0 or getattr(here, "created_ms", None) == given.created_ms


def _clash(given: Experiment, named: str, number: int | None) -> str:
    if named and named != given.name:
        return f"experiment {given.id} {given.name!r}: number {given.id} belongs to {named!r} here"
    return f"experiment {given.id} {given.name!r}: the name belongs to another one here, number {number}"


def _conflict(problems: list[str]) -> Conflict:
    shown = "\n".join(problems[:20]) + (f"\nand {len(problems) - 20} more" if len(problems) > 20 else "")
    return Conflict(f"nothing was imported, as {len(problems)} things are in the way:\n{shown}", hint=_HINT)
