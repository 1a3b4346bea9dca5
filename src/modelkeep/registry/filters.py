"""The filter language of MLflow's searches: comparisons joined by AND, read into typed clauses.

    filter     = [ comparison { AND comparison } ]
    comparison = identifier operator value | identifier IS [NOT] NULL
    identifier = [ entity "." ] key            key: bare, `quoted` or "quoted"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | LIKE | ILIKE | RLIKE | IN | NOT IN
    value      = number | 'text' | "text" | "(" 'text' { "," 'text' } ")"

Source: mlflow.org/docs, "Search Runs", "Search Experiments". The whole grammar is here; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from modelkeep.core.errors import Invalid

Kind = Literal["text", "number"]
COMPARISONS = frozenset({"=", "!=", "<", "<=", ">", ">="})
TEXT_OPERATORS = frozenset({"=", "!=", "LIKE", "ILIKE", "IN", "NOT IN"})
NULLS = frozenset({"IS NULL", "IS NOT NULL"})
MAX_FILTER = 100_000
MAX_CLAUSES = 100

_SPACE = re.compile(r"\s*")
_IDENTIFIER = re.compile(
    r"(?:(?P<entity>[A-Za-z_]+|`[A-Za-z_ ]+`)\.)?"
    r"(?P<key>(?:attributes\.)?`[^`]+`|\"[^\"]+\"|'[^']+'|[\w][\w\-./:@]*)"
)
_OPERATOR = re.compile(
    r">=|<=|!=|<>|=|>|<|(?:[IR]?LIKE|NOT\s+IN|IN|IS\s+NOT\s+NULL|IS\s+NULL)(?![\w])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_TEXT = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"")
_AND = re.compile(r"AND(?![\w])", re.IGNORECASE)
_DIRECTION = re.compile(r"\s+(asc|desc)\s*\Z", re.IGNORECASE)


class Clause(Struct, frozen=True):
    """One comparison.

    Attributes:
        entity: ``attribute``, ``metric``, ``param``, ``tag`` or ``dataset``.
        key: Of the entity, after its aliases.
        value: Number, text, texts of a list, or None for ``IS NULL``.
    """

    entity: str
    key: str
    op: str
    value: Any


class Order(Struct, frozen=True):
    """One key of an order."""

    entity: str
    key: str
    ascending: bool


class Language(Struct, frozen=True):
    """What one search accepts.

    Attributes:
        entities: The entity by each name people may write; ``attribute`` is what a bare key means.
        attributes: Kind by attribute.
        aliases: The attribute by another name of it.
        listed: Attributes and dataset keys that take IN; None for all.
        orders: Attributes that order; None for all.
        nulls: Entities that take IS NULL.
        operators: What an entity takes when it is not what entities of its name take elsewhere.
        numbers: Entities whose keys are compared with numbers by ``<``, ``<=``, ``>`` and ``>=``, else with text.
    """

    entities: Mapping[str, str]
    attributes: Mapping[str, Kind]
    aliases: Mapping[str, str] = {}
    listed: frozenset[str] | None = None
    orders: frozenset[str] | None = None
    nulls: frozenset[str] = frozenset({"param", "tag"})
    operators: Mapping[str, frozenset[str]] = {}
    numbers: frozenset[str] = frozenset()

    def parse(self, text: str) -> list[Clause]:
        """Read a filter. Raises ``Invalid`` naming what was found and what was expected."""
        if len(text) > MAX_FILTER:
            raise Invalid(f"The filter has {len(text)} characters; at most {MAX_FILTER}")
        clauses = list(self._clauses(_Scanner(text)))
        if len(clauses) > MAX_CLAUSES:
            raise Invalid(f"The filter has {len(clauses)} comparisons; at most {MAX_CLAUSES}")
        return clauses

    def parse_order(self, text: str) -> Order:
        """Read one key of an order, as ``metrics.auc DESC``; ascending unless it says. Raises ``Invalid``."""
        direction = _DIRECTION.search(text)
        name = (text[: direction.start()] if direction else text).strip()
        found = _IDENTIFIER.fullmatch(name)
        if found is None:
            raise Invalid(f"Invalid order_by clause '{text[:200]}'. Expected a key and then ASC, DESC or nothing.")
        entity, key = self._identifier(found)
        if entity == "attribute" and self.orders is not None and key not in self.orders:
            raise Invalid(f"Invalid order_by key '{key}'. Valid keys are {sorted(self.orders)}")
        return Order(entity, key, direction is None or direction[1].lower() == "asc")

    def _clauses(self, scan: _Scanner) -> Iterator[Clause]:
        while not scan.done():
            yield self._clause(scan)
            if scan.done():
                return
            if scan.take(_AND) is None or scan.done():
                raise scan.wrong("AND and another comparison")

    def _clause(self, scan: _Scanner) -> Clause:
        found = scan.take(_IDENTIFIER)
        if found is None:
            raise scan.wrong("a key such as metrics.accuracy or tags.`my tag`")
        entity, key = self._identifier(found)
        token = scan.take(_OPERATOR)
        if token is None:
            raise scan.wrong("a comparison operator")
        op = " ".join(token[0].upper().split()).replace("<>", "!=")
        self._allow(entity, key, op)
        if op in NULLS:
            return Clause(entity, key, op, None)
        if self._kind(entity, key) == "number" or (entity in self.numbers and op[0] in "<>"):
            return Clause(entity, key, op, _number(scan, entity, key))
        if op in ("IN", "NOT IN"):
            return Clause(entity, key, op, _list(scan))
        given = scan.take(_TEXT)
        if given is None:
            raise scan.wrong(f"a quoted string value for {entity} '{key}' (e.g. 'my-value')")
        return Clause(entity, key, op, _unquoted(given))

    def _identifier(self, found: re.Match[str]) -> tuple[str, str]:
        name = (found["entity"] or "attribute").strip("`")
        entity = self.entities.get(name)
        if entity is None:
            raise Invalid(f"Invalid entity type '{name}'. Valid values are {sorted(set(self.entities.values()))}")
        key = found["key"]
        if key[-1] == "`":
            key = key.replace("`", "")
        elif key[0] in "\"'":
            key = key[1:-1]
        if entity == "attribute":
            key = self.aliases.get(key, key)
            if key not in self.attributes:
                raise Invalid(f"Invalid attribute key '{key}' specified. Valid keys are {sorted(self.attributes)}")
        if entity == "dataset" and key not in ("name", "digest", "context"):
            raise Invalid(f"Invalid dataset key '{key}' specified. Valid keys are ['context', 'digest', 'name']")
        return entity, key

    def _kind(self, entity: str, key: str) -> Kind:
        return self.attributes[key] if entity == "attribute" else ("number" if entity == "metric" else "text")

    def _allow(self, entity: str, key: str, op: str) -> None:
        if self._kind(entity, key) == "number":
            allowed = COMPARISONS
        elif entity in self.operators:
            allowed = self.operators[entity]
        elif entity in ("param", "tag"):
            allowed = TEXT_OPERATORS - {"IN", "NOT IN"} | (NULLS if entity in self.nulls else frozenset())
        else:
            allowed = TEXT_OPERATORS
            if op in ("IN", "NOT IN") and entity == "attribute" and key not in (self.listed or self.attributes):
                raise Invalid(
                    f"Only {sorted(self.listed or ())} attributes support comparison with a list of quoted string"
                    " values."
                )
        if op not in allowed:
            raise Invalid(f"Invalid comparator '{op}' for {entity} '{key}': not one of {sorted(allowed)}")


class _Scanner:
    """The rest of a filter's text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
            self._skip()
        return found

    def done(self) -> bool:
        return self._at >= len(self._text)

    def wrong(self, expected: str) -> Invalid:
        rest = self._text[self._at : self._at + 60]
        found = f"found {rest!r}" if rest else "the filter ends there"
        return Invalid(
            f"Invalid clause(s) in filter string: at character {self._at + 1} expected {expected}; {found}"
        )

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at


_OPEN, _COMMA, _CLOSE = re.compile(r"\("), re.compile(","), re.compile(r"\)")


def _number(scan: _Scanner, entity: str, key: str) -> float | int:
    found = scan.take(_NUMBER)
    if found is None:
        raise scan.wrong(f"a number for {entity} '{key}' (numeric value type)")
    try:
        value: float | int = int(found[0])
    except ValueError:
        return float(found[0])
    return value if abs(value) < 2**63 else float(value)


def _list(scan: _Scanner) -> tuple[str, ...]:
    if scan.take(_OPEN) is None:
        raise scan.wrong("a list of quoted strings in parentheses")
    values = []
    while True:
        found = scan.take(_TEXT)
        if found is None:
            raise scan.wrong("a quoted string")
        values.append(_unquoted(found))
        if scan.take(_COMMA) is None:
            break
    if scan.take(_CLOSE) is None:
        raise scan.wrong("a comma or the end of the list")
    return tuple(values)


def _unquoted(found: re.Match[str]) -> str:
    single, double = found.groups()
    return str(double.replace('""', '"') if single is None else single.replace("''", "'"))
