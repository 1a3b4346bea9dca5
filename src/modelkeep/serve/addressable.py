"""Which versions may be asked for by alias, and which though no route leads to them.

Whatever a route leads to has the aliases that the registry knows. An endpoint whose settings say ``versions: all``
offers every version of its model. They are part of the wanted state as it is read, so a process that starts
without the database offers them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, func, select

from modelkeep.core.errors import NotFound
from modelkeep.registry import models
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.store.tables import models as model_table

ROLES = ("champion", "challenger")


def offers_all(wanted: Wanted) -> bool:
    """Whether every version of the endpoint's model may be asked for there."""
    settings: dict[str, Any] = wanted.settings.get("declaration") or wanted.settings
    return (settings.get("deploy") or {}).get("versions") == "all"


def widened(conn: Connection, wanted: Wanted) -> Wanted:
    """The wanted state with the aliases of what it routes to; with all versions and aliases if it offers them."""
    if not offers_all(wanted):
        routed = {route.version for route in wanted.routes}
        known = models.aliases(conn, wanted.model).items()
        # who is champion here, and who challenges, is told by the routes: another endpoint may have others
        named = {alias: number for alias, number in known if number in routed and alias not in ROLES}
        return replace(wanted, settings={**wanted.settings, "aliases": named}) if named else wanted
    try:
        found = models.versions(conn, wanted.model)
    except NotFound:  # renamed or deleted; what routes lead to is still served
        return wanted
    offered = {str(version.version): version.package for version in found if version.package}
    aliases = {alias: version.version for version in found if version.package for alias in version.aliases}
    return replace(wanted, settings={**wanted.settings, "versions": offered, "aliases": aliases})


def offered(wanted: Wanted) -> list[Route]:
    """Routes of no weight to the versions that ``widened`` added and no other route leads to."""
    known = {route.version for route in wanted.routes}
    packages: dict[str, str] = wanted.settings.get("versions") or {}
    return [
        Route(version=int(number), package=package, weight=0.0, mode="stable")
        for number, package in packages.items()
        if int(number) not in known
    ]


def stamp(conn: Connection, wanted: Sequence[Wanted]) -> int:
    """A number that changes with the models and their aliases; 0 when there are none."""
    names = sorted({one.model for one in wanted})
    if not names:
        return 0
    query = select(func.max(model_table.c.updated_ms)).where(model_table.c.name.in_(names))
    return int(conn.execute(query).scalar() or 0)
