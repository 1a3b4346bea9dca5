"""Row filters: ``distance > 0 and origin in ('JFK', 'LGA')``, compiled to SQL with every name quoted.

or      := and ('or' and)*
and     := not ('and' not)*
not     := 'not'* (test | '(' or ')')
test    := operand [ comparison operand | [not] in '(' literal, ... ')' | is [not] null
                   | [not] between operand and operand | [not] like string ]
operand := column | literal
column  := name | `any name`
literal := number | 'string' | "string" | true | false
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelkeep.spec.tokens import Cursor, fault

_COMPARISONS = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_RESERVED = frozenset({"and", "or", "not", "in", "is", "null", "between", "like", "true", "false"})
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Column:
    """A column's place in the SQL."""

    name: str


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on one row.

    Attributes:
        parts: SQL text and columns, in order.
        columns: The columns used, each once, in order of appearance.
        text: As written.
    """

    parts: tuple[str | Column, ...]
    columns: tuple[str, ...]
    text: str

    def sql(self, quote: Callable[[str], str] | None = None) -> str:
        """A boolean SQL expression (DuckDB). A row for which it is NULL does not pass.

        Args:
            quote: Makes an identifier of a column's name; standard double quotes unless given.
        """
        make = quote or quote_identifier
        return "".join(make(part.name) if isinstance(part, Column) else part for part in self.parts)


def quote_identifier(name: str) -> str:
    """The name as a standard SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parse_filter(text: str) -> Filter:
    """Read a row filter.

    Raises:
        Invalid: With the position and what was expected there.
    """
    parser = _Parser(text)
    parser.either()
    parser.cursor.need_end()
    names = [part.name for part in parser.parts if isinstance(part, Column)]
    return Filter(tuple(parser.parts), tuple(dict.fromkeys(names)), text)


class _Parser:
    def __init__(self, text: str) -> None:
        self.cursor = Cursor(text)
        self.parts: list[str | Column] = []
        self.depth = 0

    def either(self) -> None:
        self.both()
        while self.cursor.keyword("or"):
            self.parts.append(" OR ")
            self.both()

    def both(self) -> None:
        self.negation()
        while self.cursor.keyword("and"):
            self.parts.append(" AND ")
            self.negation()

    def negation(self) -> None:
        while self.cursor.keyword("not"):
            self.parts.append("NOT ")
        at = self.cursor.now.at
        if not self.cursor.op("("):
            self.test()
            return
        self.depth += 1
        if self.depth > _DEEPEST:
            fault(self.cursor.text, at, f"more than {_DEEPEST} parentheses inside each other")
        self.parts.append("(")
        self.either()
        self.cursor.need_op(")")
        self.parts.append(")")
        self.depth -= 1

    def test(self) -> None:
        at = self.cursor.now.at
        is_column = self.operand()
        if sign := self.cursor.op(*_COMPARISONS):
            self.parts.append(f" {_COMPARISONS[sign]} ")
            if self.cursor.now.text.lower() == "null":
                self.cursor.expected("a value; write 'is null' or 'is not null'")
            self.operand()
        elif self.cursor.keyword("is"):
            negated = self.cursor.keyword("not")
            if not self.cursor.keyword("null"):
                self.cursor.expected("'null'")
            self.parts.append(" IS NOT NULL" if negated else " IS NULL")
        elif not self.wordy() and not is_column:
            fault(self.cursor.text, at, "a value alone is not a condition")

    def wordy(self) -> bool:
        """``[not] in``, ``[not] between``, ``[not] like``; whether there was one."""
        cursor = self.cursor
        negated = cursor.keyword("not")
        word = cursor.keyword("in", "between", "like")
        if word is None:
            if negated:
                cursor.expected("'in', 'between' or 'like'")
            return False
        self.parts.append(f" {'NOT ' if negated else ''}{word.upper()} ")
        if word == "in":
            cursor.need_op("(")
            self.parts.append("(")
            self.literal()
            while cursor.op(","):
                self.parts.append(", ")
                self.literal()
            cursor.need_op(")")
            self.parts.append(")")
        elif word == "between":
            self.operand()
            if not cursor.keyword("and"):
                cursor.expected("'and'")
            self.parts.append(" AND ")
            self.operand()
        elif cursor.now.kind == "quoted":
            self.literal()
        else:
            cursor.expected("a string such as 'J%'")
        return True

    def operand(self) -> bool:
        """A column or a literal; whether it was a column."""
        token = self.cursor.now
        if token.kind == "name" or (token.kind == "word" and token.text.lower() not in _RESERVED):
            self.cursor.take()
            self.parts.append(Column(token.text))
            return True
        self.literal("a column or a value")
        return False

    def literal(self, what: str = "a number or a string") -> None:
        cursor = self.cursor
        token = cursor.now
        if token.kind == "quoted":
            if "\0" in token.text:
                fault(cursor.text, token.at, "a string with a zero byte")
            self.parts.append("'" + token.text.replace("'", "''") + "'")
            cursor.take()
        elif word := cursor.keyword("true", "false"):
            self.parts.append(word.upper())
        elif token.kind == "number" or (token.kind == "op" and token.text in "+-"):
            start = cursor.now.at
            cursor.number()
            written = cursor.text[start : cursor.now.at].strip()
            if written.endswith("%"):
                fault(cursor.text, start, "a percentage where a plain number is expected")
            # The text itself, not the float: whole numbers beyond 2^53 keep their digits.
            self.parts.append(written.replace(" ", ""))
        else:
            cursor.expected(what)
