"""Durations and rates as people write them."""

from __future__ import annotations

import math
import re

from modelkeep.core.errors import Invalid

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_PIECE = re.compile(rf"({_NUMBER})\s*(ms|s|m|h|d|w)\s*")
_DURATION = re.compile(rf"(?:{_NUMBER}\s*(?:ms|s|m|h|d|w)\s*)+")
_PER = re.compile(rf"({_NUMBER})\s+per\s+({_NUMBER})(?:\s+[A-Za-z]+)?")
_PERCENT = re.compile(rf"({_NUMBER})\s*(%?)")


def seconds(text: str) -> float:
    """A duration in seconds: ``250ms``, ``10m``, ``1h30m``, ``1d``, ``2w``.

    Raises:
        Invalid: The text is not a duration.
    """
    stripped = text.strip()
    if not _DURATION.fullmatch(stripped):
        raise Invalid(
            f"{_short(text)} is not a duration; expected a number and a unit, such as '250ms', '10m' or '1d'"
        )
    return math.fsum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(stripped))


def rate(text: str) -> float:
    """A rate in (0, 1): ``1 per 1000 windows``, ``0.1%``, ``0.001``.

    Raises:
        Invalid: The text is not a rate, or the rate is not above 0 and below 1.
    """
    stripped = text.strip()
    if match := _PER.fullmatch(stripped):
        count, of = float(match[1]), float(match[2])
        value = count / of if of else math.inf
    elif match := _PERCENT.fullmatch(stripped):
        value = float(match[1]) / (100.0 if match[2] else 1.0)
    else:
        raise Invalid(f"{_short(text)} is not a rate; expected something like '1 per 1000 windows' or '0.1%'")
    if not 0.0 < value < 1.0:
        raise Invalid(f"{_short(text)} is a rate of {value:g}; expected more than 0 and less than 1")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
