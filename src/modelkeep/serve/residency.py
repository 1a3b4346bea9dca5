"""Models in memory while they are asked: loaded when a request wants them, unloaded when memory is short.

What is unloaded is what was asked longest ago. A batch that is being predicted keeps its model until it ends.
What a shadow sees is no request: shadows go first, and none is loaded in the place of a version that answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Model
from modelkeep.serve import memory

log = logging.getLogger(__name__)


class Resident:
    """A model that is there when it is asked. Safe to call from several threads.

    Args:
        residency: Whose memory it takes.
        load: Loads it, verified and warm.
        label: What it is, for people.
        apart: Whether it runs in a process of its own, so that predicting always waits for that.
        least: Bytes it takes at least.
        repeatable: Whether the same rows may be predicted more than once.
    """

    def __init__(
        self,
        residency: Residency,
        load: Callable[[], Model],
        label: str,
        *,
        apart: bool,
        least: int = 0,
        repeatable: bool = True,
    ) -> None:
        self.label = label
        self.least = least
        self.repeatable = repeatable
        self.used = 0.0  # not since it was asked by anyone but a shadow
        self.size = least
        self.loads = 0
        self.loading = threading.Lock()
        self._residency = residency
        self._load = load
        self._apart = apart
        self._model: Model | None = None

    @property
    def waits(self) -> bool:
        """Whether predicting may wait: for loading, or for another process."""
        return self._apart or self._model is None

    @property
    def here(self) -> bool:
        """Whether it is loaded."""
        return self._model is not None

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """As the model does; loads it first when it is not there.

        Raises:
            ModelkeepError: It cannot be loaded, or as the model raises.
        """
        return self._now().predict(columns)

    def once(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """As ``predict``, but a model that would repeat by itself what was lost does not."""
        model = self._now()
        found: Mapping[str, Any] = getattr(model, "once", model.predict)(columns)
        return found

    def _now(self) -> Model:
        model = self._model or self._residency.bring(self)
        self.used = monotonic()
        return model

    def watch(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """As ``predict``, for a shadow. Raises ``NoRoom`` when others would have to go for it."""
        return (self._model or self._residency.bring(self, shadow=True)).predict(columns)

    def bring(self, *, shadow: bool = False) -> None:
        """Load it now, unless it is there. Blocks. Raises what loading raises, and ``NoRoom`` for a shadow."""
        self._residency.bring(self, shadow=shadow)

    def load(self) -> Model:
        """For the residency: load it. Call with ``loading`` held."""
        if self._model is None:
            self._model = self._load()
            self.loads += 1
        return self._model

    @property
    def taken(self) -> int:
        """Bytes that it is known to take: its processes, or what it took when it was loaded, or its file."""
        processes: int = sum(process["pss_bytes"] for process in self.status()["processes"])
        return max(self.size, processes)

    def unload(self) -> None:
        """For the residency: let go of it. Batches under way keep it until they end."""
        self._model = None

    def status(self) -> dict[str, Any]:
        """JSON types: how its process stands, when it has one and is loaded."""
        ask = getattr(self._model, "status", None)
        found: dict[str, Any] = ask() if ask is not None else {"processes": []}
        return {**found, "loads": self.loads}


class NoRoom(Unavailable):
    """A shadow is not loaded, because versions that answer take the memory."""


class Residency:
    """The memory that the models of one process may take together.

    Args:
        budget: Bytes; 0 for as much as there is.
    """

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self.unloads = 0
        self._sizes: WeakKeyDictionary[Resident, int] = WeakKeyDictionary()
        self._guard = threading.Lock()
        self._measuring = threading.Lock()

    def bring(self, resident: Resident, *, shadow: bool = False) -> Model:
        """Load a model, and unload others when they are too many. Raises what loading raises.

        Args:
            shadow: Whether for a shadow: then nothing is unloaded for it, and ``NoRoom`` raised instead.
        """
        with resident.loading:
            if not shadow:
                resident.used = resident.used or monotonic()
            if resident.here:
                return resident.load()
            if not self.budget:
                model = resident.load()
                memory.give_back()
                return model
            if shadow and self.held + resident.size > self.budget:
                raise self._no_room(resident)
            with self._measuring:  # what memory grows by is this model's only if nothing else loads
                before = memory.resident()
                model = resident.load()
                memory.give_back()  # what loading took only for a moment
                size = max(memory.resident() - before, resident.least)  # freed memory may be used again
            size += sum(process["pss_bytes"] for process in resident.status()["processes"])
            resident.size = size
            with self._guard:
                fits = not shadow or sum(self._sizes.values()) + size <= self.budget
                if fits:
                    self._sizes[resident] = size
            if not fits:  # nobody knew how much it takes
                del model
                resident.unload()
                memory.give_back()
                raise self._no_room(resident)
        if not shadow:
            resident.used = monotonic()
            self._make_room(resident)
        return model

    def _no_room(self, resident: Resident) -> NoRoom:
        return NoRoom(
            f"a shadow takes {resident.size >> 20} MB, and versions that answer hold {self.held >> 20} of the "
            f"{self.budget >> 20} MB that models may take",
            hint="raise MODELKEEP_MODELS_MEMORY",
        )

    @property
    def full(self) -> bool:
        """Whether another model would not fit, even in the place of shadows."""
        with self._guard:
            answering = sum(size for resident, size in self._sizes.items() if resident.used)
        return bool(self.budget) and answering >= self.budget

    @property
    def held(self) -> int:
        """Bytes that the loaded models took when they were loaded; 0 without a budget."""
        with self._guard:
            return sum(self._sizes.values())

    def let_go(self, residents: Sequence[Resident]) -> None:
        """Unload models; they come back when they are asked."""
        with self._guard:
            for one in residents:
                self._sizes.pop(one, None)
                one.unload()
            self.unloads += len(residents)
        memory.give_back()

    def _make_room(self, newest: Resident) -> None:
        gone: list[str] = []
        with self._guard:
            while sum(self._sizes.values()) > self.budget:
                others = [each for each in self._sizes if each is not newest]
                if not others:
                    break
                oldest = min(others, key=lambda each: each.used)
                del self._sizes[oldest]
                oldest.unload()
                gone.append(oldest.label)
            self.unloads += len(gone)
        if gone:
            log.info("unloaded %s to make room for %s", ", ".join(gone), newest.label)
            memory.give_back()
