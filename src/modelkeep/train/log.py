"""What training reports while it works: the run it logs to, and what it tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct

from modelkeep.core.ports import Engine

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunLog(Protocol):
    """Where training writes its parameters and metrics; lifecycle keeps it as a run.

    Promises: calls are cheap and keep their order; a child is a run of its own under this one.
    """

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, values as they are."""
        ...

    def metric(self, key: str, value: float, step: int = 0) -> None:
        """Record one value of a metric at a step."""
        ...

    def child(self, name: str) -> RunLog:
        """Start a run under this one."""
        ...

    def end(self, status: Status = "FINISHED") -> None:
        """Close this run; ``KILLED`` says it was stopped early on purpose."""
        ...


class Unlogged:
    """A run log that keeps nothing."""

    def params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def metric(self, key: str, value: float, step: int = 0) -> None:
        """Do nothing."""

    def child(self, name: str) -> RunLog:
        """Itself."""
        return self

    def end(self, status: Status = "FINISHED") -> None:
        """Do nothing."""


class Recorded:
    """A run log that remembers, on a machine where no run is kept, what is to be said of it at home."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, ...]] = []

    def params(self, params: Mapping[str, Any]) -> None:
        """Remember parameters; those of types that may not travel as their text."""
        plain = (bool, int, float, str, type(None))
        said = {name: value if isinstance(value, plain) else str(value) for name, value in params.items()}
        self._calls.append(("params", said))

    def metric(self, key: str, value: float, step: int = 0) -> None:
        """Remember one value of a metric."""
        self._calls.append(("metric", key, value, step))

    def child(self, name: str) -> Recorded:
        """Remember that a run was started under this one, and what will be said of it."""
        child = Recorded()
        self._calls.append(("child", name, child))
        return child

    def end(self, status: Status = "FINISHED") -> None:
        """Remember that it was closed."""
        self._calls.append(("end", status))

    def replay(self, run: RunLog) -> None:
        """Say it all of a run that is kept."""
        for call, *arguments in self._calls:
            if call == "child":
                name, child = arguments
                child.replay(run.child(name))
            else:
                getattr(run, call)(*arguments)


class Tried(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt of ``tune`` or ``auto``.

    Attributes:
        algorithm: Short name or import path.
        params: What was given beyond the defaults.
        score: Of the metric, on rows not fitted on; None when it failed or was stopped before a score.
        low: Lower end of the score's 95% interval, where one was computed.
        high: Upper end.
        rows: How many rows it was fitted on.
        seconds: Wall time of fitting and scoring.
        note: Why it ended here: ``chosen``, ``stopped early``, or the error.
    """

    algorithm: str
    params: dict[str, Any]
    score: float | None
    rows: int
    seconds: float
    low: float | None = None
    high: float | None = None
    note: str = ""


class UserRun:
    """The ``run`` handed to a user's ``fit(data, params, run)``."""

    def __init__(self, log: RunLog, engine: Callable[[], Engine] | None = None) -> None:
        self._log, self._engine = log, engine

    @property
    def engine(self) -> str:
        """``local``, or the address of the declaration's engine, to which this process is connected from now on.

        Raises:
            MissingExtra: The engine's library is not installed.
            Unavailable: It does not answer.
            Refused: Its workers have other versions, or lack the resources.
        """
        return "local" if self._engine is None else self._engine().address

    def log_metric(self, key: str, value: float, step: int = 0) -> None:
        """Record one value of a metric, such as the loss after an epoch."""
        self._log.metric(key, float(value), int(step))

    def log_param(self, key: str, value: Any) -> None:
        """Record one parameter the declaration does not hold."""
        self._log.params({key: value})
