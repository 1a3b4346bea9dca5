"""The loop of ``modelkeep up``: take in what was served, find, decide, act. One tick does all of it once.

Each act is one durable transaction and can be repeated, so a kill between any two leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from modelkeep.core.clock import FileClock
from modelkeep.core.errors import ModelkeepError
from modelkeep.lifecycle import facts, renewals, rollout
from modelkeep.lifecycle.decide import Abort, Advance, Decision, Policy, Promote, Renew, decide, policy
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.looking import Looking
from modelkeep.lifecycle.renewals import ENDING, Renewals, Start
from modelkeep.lifecycle.watching import Watch
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Wanted
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration

log = logging.getLogger(__name__)

EVERY = 0.1
"""Seconds between ticks."""
EVERY_PLAYED = 0.02
"""The same when time is played: an hour may pass in a moment."""


class Status(Struct):
    """What the loop says of itself.

    Attributes:
        seen: Time of the last whole tick.
        ticks: How many there were.
        busy: Whether a renewal runs or waits.
        fault: What went wrong in the last tick; empty when nothing did.
    """

    seen: float = 0.0
    ticks: int = 0
    busy: bool = False
    fault: str = ""


class Loop:
    """Watches every endpoint of a home.

    Args:
        keep: The home.
        start: Starts the process of a renewal.
    """

    def __init__(self, keep: Keep, start: Start) -> None:
        self.keep = keep
        self.renewals = Renewals(keep, start)
        self.watch = Watch(keep)
        self.looking = Looking(keep)
        self._status = Status()
        self._declarations: dict[int, Declaration] = {}
        self._waiting: dict[str, str] = {}
        self._faults: list[str] = []
        self._known_faults: set[str] = set()

    def status(self) -> dict[str, Any]:
        """What the loop says of itself, JSON types."""
        now = self._status
        return {
            "seen": now.seen,
            "ticks": now.ticks,
            "busy": now.busy,
            "fault": now.fault,
            "waiting": self._waiting,
        }

    def run(self, stopping: threading.Event) -> None:
        """Tick until told to stop. A fault is told and the next tick tries again."""
        pause = EVERY_PLAYED if isinstance(self.keep.clock, FileClock) else EVERY
        while not stopping.is_set():
            with self._told("the loop"):
                self.tick()
            stopping.wait(pause)

    def tick(self) -> None:
        """Everything once, at the clock's time now. What fails for one endpoint holds up no other."""
        self._faults.clear()
        now = self.keep.clock.now()
        with self.keep.db.read() as conn:
            served = endpoints.wanted(conn)
        with self._told("capture"):
            self.watch.take_in()
        for wanted in served:
            if "declaration" in wanted.settings:
                with self._told(f"endpoint {wanted.endpoint}"):
                    self._look_after(wanted, now)
        self.renewals.tend()
        self._status = Status(
            seen=now, ticks=self._status.ticks + 1, busy=self.renewals.busy(), fault="; ".join(self._faults)
        )

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Keep a fault from ending the loop; write it down once, not at every tick."""
        try:
            yield
        except Exception as error:
            text = f"{what}: {error if isinstance(error, ModelkeepError) else f'{type(error).__name__}: {error}'}"
            if text not in self._known_faults:
                log.error("%s", text, exc_info=None if isinstance(error, ModelkeepError) else error)
            self._known_faults.add(text)
            self._faults.append(text)
            if what == "the loop":
                self._status = msgspec.structs.replace(self._status, fault=text)

    def stop_jobs(self, *, at_once: bool = False) -> None:
        """End what runs; it is taken up again at the next start."""
        self.renewals.stop(0.0 if at_once else ENDING)

    def _look_after(self, wanted: Wanted, now: float) -> None:
        declaration = self._declaration(wanted)
        rules = policy(declaration)
        self.watch.close_windows(wanted, declaration, now)
        if any(True for _ in rules.triggers):
            self.looking.look(declaration, now)
            if fault := self.looking.fault(declaration.model):
                self._faults.append(fault)
        underway = self.watch.underway(wanted, declaration)
        with self.keep.db.read() as conn:
            known = facts.gather(conn, wanted, now=now, rollout=underway)
        for decision in decide(rules, known):
            self._act(wanted, declaration, rules, decision, now)

    def _act(
        self, wanted: Wanted, declaration: Declaration, rules: Policy, decision: Decision, now: float
    ) -> None:
        name, because = wanted.endpoint, decision.because
        write = self.keep.db.write
        match decision:
            case Renew():
                write(lambda conn: renewals.ask(conn, declaration, now=now, because=because))
            case Advance(version=version, step=step):
                write(
                    lambda conn: rollout.advance(
                        conn, name, version=version, step=step, steps=rules.steps, now=now, because=because
                    )
                )
            case Promote(version=version):
                write(lambda conn: rollout.promote(conn, name, version=version, now=now, because=because))
            case Abort(version=version):
                write(lambda conn: rollout.abort(conn, name, version=version, now=now, because=because))
            case _:
                self._waiting[name] = because
                return
        self._waiting.pop(name, None)

    def _declaration(self, wanted: Wanted) -> Declaration:
        if wanted.generation not in self._declarations:
            self._declarations[wanted.generation] = loading.from_builtins(wanted.settings["declaration"])
        return self._declarations[wanted.generation]
