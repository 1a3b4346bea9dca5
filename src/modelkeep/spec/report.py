"""Where the checks of meaning put what they find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from modelkeep.core.errors import Invalid, Problem
from modelkeep.spec.names import unknown
from modelkeep.spec.nodes import child


class Report:
    """Collects problems, at the place in the file where the field stands.

    Args:
        file: Where the declaration was read from.
        places: Line and column by path.
        bad: Paths already known to be wrong; nothing more is said about them or what is inside.
    """

    def __init__(self, file: str, places: Mapping[str, tuple[int, int]], bad: Collection[str]) -> None:
        self.file = file
        self.places = places
        self.bad = bad
        self.problems: list[Problem] = []

    def add(self, path: str, message: str) -> None:
        """One problem."""
        if any(path == item or path.startswith((f"{item}.", f"{item}[")) for item in self.bad):
            return
        line, column = self.place(path)
        self.problems.append(Problem(path, message, self.file, line, column))

    def place(self, path: str) -> tuple[int, int]:
        """Where the field stands, or else what it is part of."""
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path, (0, 0))

    def parse(self, path: str, parser: Callable[[str], Any], text: str | None) -> Any:
        """What a parser makes of a text; None, after adding its problems, when it refuses."""
        if text is None:
            return None
        try:
            return parser(text)
        except Invalid as error:
            for problem in error.problems:
                self.add(path, problem.message)
            return None

    def parse_all(self, path: str, parser: Callable[[str], Any], texts: tuple[str, ...]) -> list[Any]:
        """Every text of a list; None for those refused."""
        return [self.parse(child(path, index), parser, text) for index, text in enumerate(texts)]

    def known(self, path: str, name: str, names: tuple[str, ...], what: str) -> bool:
        """Whether a name is one of those known; adds a problem when not."""
        if name in names:
            return True
        self.add(path, unknown(name, names, what))
        return False

    def unique(self, path: str, names: tuple[str, ...]) -> None:
        """Every name stands once."""
        for index, name in enumerate(names):
            if name in names[:index]:
                self.add(child(path, index), f"{name!r} stands here twice")

    def between(self, path: str, value: float | None, low: float, high: float, *, open_ends: bool = False) -> None:
        """A number within bounds; ``open_ends`` excludes the bounds themselves."""
        if value is None:
            return
        if low < value < high or (not open_ends and low <= value <= high):
            return
        ends = (
            f"more than {low:g} and less than {high:g}" if open_ends else f"at least {low:g} and at most {high:g}"
        )
        if high == float("inf"):
            ends = f"more than {low:g}" if open_ends else f"at least {low:g}"
        self.add(path, f"{value:g} is out of range; expected {ends}")
