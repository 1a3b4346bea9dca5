"""Looking into sources while the loop goes on: a thread for each source, on the engine that is declared.

A source may be slow or away for hours. Rollouts, other models and their sources do not wait for it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from functools import partial

from modelkeep.core.errors import ModelkeepError
from modelkeep.data.changes import changed
from modelkeep.data.files import is_local
from modelkeep.data.snapshots import Snapshots
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import events
from modelkeep.spec.declaration import Data, Declaration

log = logging.getLogger(__name__)

EVERY_REMOTE = 60.0
"""Seconds from one look to the next into a source that others work for: a listing, a query, a function's call."""

MOMENT = 0.5
"""Seconds the loop waits for a look that it began: most are over by then, and the same tick can count new rows."""


def every(data: Data) -> float:
    """Seconds between looks into a source. Files of this machine only cost their sizes: whenever the loop ticks.

    Everything else once a minute: what a function or a query would give is only known by having it all again.
    """
    return 0.0 if isinstance(data.source, str) and is_local(data.source) else EVERY_REMOTE


@dataclass
class _Look:
    began: float
    thread: threading.Thread | None = None
    fault: str = ""
    told: set[str] = field(default_factory=set)


class Looking:
    """Takes a snapshot when a source changed, so that what is new can be counted.

    Args:
        keep: The home.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._looks: dict[str, _Look] = {}

    def fault(self, model: str) -> str:
        """What the last look into a model's source failed of; empty when it did not."""
        look = self._looks.get(model)
        return look.fault if look else ""

    def look(self, declaration: Declaration, now: float) -> None:
        """Look into the source if that is due and no look is under way; waits a moment for it, not longer."""
        look = self._looks.get(declaration.model)
        if look is None:
            look = self._looks[declaration.model] = _Look(began=float("-inf"))
        if look.thread is not None and look.thread.is_alive():
            return
        if 0 <= now - look.began < every(declaration.data):
            return
        look.began = now
        # A daemon: who ends the process does not wait for a source that is away.
        look.thread = threading.Thread(
            target=self._see, args=(look, declaration, now), name=f"source of {declaration.model}", daemon=True
        )
        look.thread.start()
        look.thread.join(MOMENT)

    def wait(self, seconds: float) -> None:
        """Give looks under way so long to end."""
        for look in self._looks.values():
            if look.thread is not None:
                look.thread.join(seconds)

    def _see(self, look: _Look, declaration: Declaration, now: float) -> None:
        try:
            self._take(declaration, now)
        except Exception as error:
            said = str(error) if isinstance(error, ModelkeepError) else f"{type(error).__name__}: {error}"
            look.fault = f"the source of {declaration.model}: {said}"
            if look.fault not in look.told:
                log.error("%s", look.fault, exc_info=None if isinstance(error, ModelkeepError) else error)
            look.told.add(look.fault)
        else:
            look.fault = ""

    def _take(self, declaration: Declaration, now: float) -> None:
        keep, model = self._keep, declaration.model
        if not changed(keep.db, declaration.data, model, keep.base):
            return
        store = Snapshots(keep.db, keep.blobs)
        before = store.latest(model)
        # Engines of its own, closed at once: a process that mostly waits holds no cluster's connection. What is
        # read here is read without processes beside: the loop's process has enough to do with less.
        own = replace(keep, engines=keep.engines.anew())
        opens = None if declaration.engine == "local" else partial(own.engine, declaration)
        try:
            taken = store.take(declaration.data, model, keep.base, now, engine=opens)
        finally:
            own.engines.close()
        grown = taken.rows - (before.rows if before else 0)
        text = f"{taken.rows} rows, {grown:+} since the last"
        keep.db.write(
            lambda conn: events.append(
                conn, "data.snapshot", model, {"digest": taken.digest, "text": text}, now=now
            )
        )
