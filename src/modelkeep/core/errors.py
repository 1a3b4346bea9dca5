"""One error tree. It knows nothing of HTTP or exit codes: each door maps it to its own.

ModelkeepError
├── Invalid            what was given is wrong; ``problems`` lists every fault with its field's path
├── NotFound           a name, number or digest that is not known
├── Conflict           it exists already, or another change got there first
├── Refused            allowed in form, forbidden by a rule (a gate, a trust list, a hold)
├── Damaged            stored bytes do not match their digest, or the event chain is broken
├── Unavailable        a disk, database, engine or source cannot be reached or is full; trying again may help
│   ├── Overloaded     more is asked than can be answered in time; ``retry_after`` says when to try again
│   └── TooLate        the caller's deadline passed before the work began
├── Lost               the process that computed is gone; nobody knows how far it had come
├── MissingExtra       an optional dependency is not installed; the message holds the exact pip command
└── UserCodeFailed     a function the user wrote raised; holds its shortened traceback
    └── Unfit          a model's own code refuses the rows it was given: by ValueError, TypeError, KeyError
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class ModelkeepError(Exception):
    """Root of every error this package raises on purpose.

    Args:
        message: One sentence a user can act on.
        hint: What to do next, in the imperative; shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without calling the constructor, which may ask for more than the message."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[ModelkeepError], args: tuple[Any, ...]) -> ModelkeepError:
    made = kind.__new__(kind, *args)
    made.args = args
    return made


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in something given from outside.

    Attributes:
        path: The field's path, as ``train.params.alpha`` or ``inputs[0].data[3]``.
        message: What was found and what was expected.
        file: Where it was read from; empty when it did not come from a file.
        line: 1-based line in ``file``; 0 when unknown.
        column: 1-based column in ``file``; 0 when unknown.
    """

    path: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = self.file
        if self.line:
            where += f":{self.line}:{self.column}"
        return ": ".join(part for part in (where, self.path, self.message) if part)


class Invalid(ModelkeepError):
    """What was given is wrong. Lists every fault found, not just the first."""

    def __init__(self, problems: Sequence[Problem] | str, *, path: str = "", hint: str = "") -> None:
        if isinstance(problems, str):
            problems = [Problem(path, problems)]
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class NotFound(ModelkeepError):
    """A name, number or digest that is not known."""


class Conflict(ModelkeepError):
    """It exists already, or another change got there first."""


class Refused(ModelkeepError):
    """Allowed in form, forbidden by a rule: a gate, a trust list, a hold."""


class Damaged(ModelkeepError):
    """Stored bytes do not match their digest, or the event chain is broken."""


class Unavailable(ModelkeepError):
    """Something outside cannot be reached or is full; trying again may help."""


class Overloaded(Unavailable):
    """More is asked than can be answered in time.

    Args:
        retry_after: Seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0, hint: str = "try again in a moment") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class TooLate(Unavailable):
    """The caller's deadline passed before the work began, so that nothing was computed."""


class Lost(ModelkeepError):
    """The process that computed is gone: it died, or was ended because it took too long.

    Nobody knows how far it had come, so doing the same once more is for whoever knows that it may be done twice.

    Args:
        late: Whether it took too long; then once more would take as long again.
    """

    def __init__(self, message: str, *, late: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.late = late

    def twice(self) -> Lost:
        """The same, once it has happened again."""
        return Lost(f"{self.message}; it was tried twice", late=self.late, hint=self.hint)


class MissingExtra(ModelkeepError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", hint=f'pip install "modelkeep[{extra}]"')
        self.package = package
        self.extra = extra


class UserCodeFailed(ModelkeepError):
    """A function the user wrote raised.

    Attributes:
        traceback: The user's own frames only, as text.
    """

    def __init__(self, message: str, *, traceback: str) -> None:
        super().__init__(f"{message}\n{traceback}")
        self.traceback = traceback


class Unfit(UserCodeFailed):
    """A model's own code refuses what it was given, by raising what code raises on input that it cannot take.

    No ``Invalid``, which finds its fault before the model has run.
    """
