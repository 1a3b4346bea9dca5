"""The guard before MLflow's operations: by their rules, once a request is decoded and says what it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from modelkeep.core.errors import Refused
from modelkeep.protocols.access.asgi import asking
from modelkeep.protocols.access.guard import Guard
from modelkeep.protocols.access.operations import RULES, Rule, narrowed
from modelkeep.registry import access_places as places
from modelkeep.registry import artifacts
from modelkeep.registry.access_rights import Principal
from modelkeep.registry.artifacts import Owner
from modelkeep.registry.events import acting
from modelkeep.store.writer import Mergeable

Check = Callable[[Connection], None]
"""Raises ``Refused`` when something that is touched may not be."""


class Doorkeeper:
    """Decides about operations and files.

    Args:
        guard: Who may what.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def permit(self, method: str, path: str, asked: Any, who: Principal | None) -> tuple[Any, Check | None]:
        """The request as it may be asked, and what must be looked up first; None when nothing must.

        Args:
            method: Of the operation.
            path: Its template below ``/api/2.0/mlflow/``.

        Raises:
            Refused: No rule is stated for the operation.
        """
        if who is None:
            return asked, None
        rule = RULES.get((method, path))
        if rule is None:
            raise Refused(f"nobody has stated who may {method} {path}: it is refused to all")
        if rule.everywhere:
            self._guard.require(who, rule.right)
            return asked, None
        if rule.narrow:
            return narrowed(rule, asked, who.names(rule.right, "experiment")), None
        if rule.shows or (who.may(rule.right) and all(who.may(right) for right, _ in rule.also)):
            return asked, None
        return asked, lambda conn: self._touch(conn, rule, asked, who)

    def wrap(self, work: Callable[[Any], Any], who: Principal | None) -> Callable[[Any], Any]:
        """The work, showing what ``who`` may read and writing the history in their name."""
        if who is None:
            return work
        if isinstance(work, Mergeable):
            work.sign(who.name)
            return work

        def known(conn: Any) -> Any:
            with acting(who.name), places.seeing(lambda kind: who.names("read", kind)):
                return work(conn)

        return known

    def locate(self, conn: Connection, path: str, right: str) -> tuple[Owner, str]:
        """Like ``artifacts.locate``, for whoever asks. Raises ``Refused`` too."""
        owner, inner = artifacts.locate(conn, path)
        self.files(conn, right, owner)
        return owner, inner

    def spans(
        self, conn: Connection, who: Principal | None, experiment: int, run_id: str, trace_ids: list[str]
    ) -> None:
        """Whether spans may be kept there, of a run, and added to traces that are known. Raises ``Refused``."""
        if who is None or who.may("write"):
            return
        touched = [("experiment", str(experiment)), *places.of_trace(conn, trace_ids)]
        for kind, name in [*touched, *(places.of_run(conn, run_id) if run_id else [])]:
            self._guard.require(who, "write", kind, name)

    def files(self, conn: Connection, right: str, owner: Owner) -> None:
        """Whether files may be read or written. Of a package, one of the models that has it is enough."""
        who = asking()
        if who is None or who.may(right):
            return
        found = places.of_owner(conn, owner)
        if owner.kind == "package":
            if not any(who.may(right, kind, name) for kind, name in found):
                raise Refused(f"{who.name} may not {right} this package: none of its models is theirs")
            return
        for kind, name in found:
            self._guard.require(who, right, kind, name)

    def model(self, name: str) -> None:
        """Whether whoever asks may read a registered model. Raises ``Refused``."""
        self._guard.require(asking(), "read", "model", name)

    def _touch(self, conn: Connection, rule: Rule, asked: Any, who: Principal) -> None:
        found = [where for touch in rule.touches for where in touch(conn, asked)]
        if not rule.any or not any(who.may(rule.right, kind, name) for kind, name in found):
            for kind, name in found:
                self._guard.require(who, rule.right, kind, name)
        for right, touch in rule.also:
            for kind, name in touch(conn, asked):
                self._guard.require(who, right, kind, name)
