"""The words of the expression grammars, and a cursor over them that explains itself when it is disappointed."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, NoReturn

from modelkeep.core.errors import Invalid

Kind = Literal["number", "word", "quoted", "name", "op", "end"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<word>[^\W\d]\w*)
      | (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<name>`[^`]+`)
      | (?P<op>>=|<=|==|!=|<>|[<>=%(),.+\-])
    )""",
    re.VERBOSE,
)
_LONGEST = 10_000


class Token(NamedTuple):
    """One word.

    Attributes:
        kind: ``number``; ``word`` (bare); ``quoted`` (a string); ``name`` (in backticks); ``op``; ``end``.
        text: As written, without quotes.
        at: 0-based position.
    """

    kind: Kind
    text: str
    at: int


def fault(text: str, at: int, message: str) -> NoReturn:
    """Refuse an expression, saying where."""
    shown = text if len(text) <= 120 else text[:117] + "..."
    raise Invalid(f"{message} (character {at + 1} of {shown!r})")


def tokenize(text: str) -> list[Token]:
    """Cut into words, ending with an ``end`` token.

    Raises:
        Invalid: A character that belongs to no word, or a string without its closing quote.
    """
    if len(text) > _LONGEST:
        raise Invalid(f"the expression is {len(text)} characters long, at most {_LONGEST} are allowed")
    tokens: list[Token] = []
    at = 0
    stop = len(text.rstrip())
    while at < stop:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            if text[at] in "'\"`":
                fault(text, at, f"the {text[at]} that opens here is never closed")
            fault(text, at, f"unexpected {text[at]!r}")
        kind: Kind = match.lastgroup  # type: ignore[assignment]
        word = match[kind]
        if kind == "quoted":
            word = word[1:-1].replace(word[0] * 2, word[0])
        elif kind == "name":
            word = word[1:-1]
        tokens.append(Token(kind, word, match.start(kind)))
        at = match.end()
    tokens.append(Token("end", "", stop))
    return tokens


class Cursor:
    """Reads tokens one by one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.index = 0

    @property
    def now(self) -> Token:
        return self.tokens[self.index]

    def take(self) -> Token:
        token = self.now
        if token.kind != "end":
            self.index += 1
        return token

    def op(self, *texts: str) -> str | None:
        """Take the operator if it is one of these."""
        token = self.now
        if token.kind == "op" and token.text in texts:
            self.index += 1
            return token.text
        return None

    def keyword(self, *words: str) -> str | None:
        """Take the bare word if it is one of these, whatever its case."""
        token = self.now
        if token.kind == "word" and token.text.lower() in words:
            self.index += 1
            return token.text.lower()
        return None

    def need_op(self, text: str) -> None:
        if self.op(text) is None:
            self.expected(repr(text))

    def need_end(self) -> None:
        if self.now.kind != "end":
            self.expected("the end")

    def number(self) -> float:
        """A number with an optional sign and an optional ``%`` (divides by 100)."""
        sign = -1.0 if self.op("-", "+") == "-" else 1.0
        token = self.now
        if token.kind != "number":
            self.expected("a number")
        value = float(token.text)
        if value in (float("inf"), float("-inf")):
            fault(self.text, token.at, "the number is too large")
        self.index += 1
        return sign * (value / 100.0 if self.op("%") else value)

    def expected(self, what: str) -> NoReturn:
        """Refuse the token that comes now."""
        token = self.now
        found = "the end" if token.kind == "end" else repr(token.text)
        fault(self.text, token.at, f"found {found}, expected {what}")
