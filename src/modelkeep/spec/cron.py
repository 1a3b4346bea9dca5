"""Times that repeat: the five fields of crontab(5), in UTC."""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from modelkeep.core.errors import Invalid
from modelkeep.spec.names import unknown

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
# 29 February on one weekday comes again after at most 40 years (28, and 12 more around 2100).
_HORIZON_DAYS = 40 * 366
_ITEM = re.compile(r"(\*|[0-9A-Za-z]+)(?:-([0-9A-Za-z]+))?(?:/([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class Cron:
    """A trigger by the clock.

    When both day fields are restricted a day matches if either does, as in crontab(5).

    Attributes:
        minutes, hours, days, months, weekdays: What matches; Sunday is 0.
        either: Whether both day fields are restricted.
        text: As written.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    text: str

    def due(self, last: float, now: float) -> bool:
        """Whether a moment of the schedule lies in (last, now]; both in seconds since 1970 UTC."""
        return now > last and self.next(last) <= now

    def next(self, after: float) -> float:
        """The first moment of the schedule after ``after``; infinity when none comes within 40 years."""
        start = datetime.fromtimestamp(after, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.date()
        for _ in range(_HORIZON_DAYS):
            if self._on(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
                        if moment >= start:
                            return moment.timestamp()
            day += timedelta(days=1)
        return float("inf")

    def _on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either else of_month and of_week


def parse_cron(text: str) -> Cron:
    """Read ``minute hour day-of-month month day-of-week``: ``*``, numbers, ranges, lists, steps, English names.

    Raises:
        Invalid: Not five fields, a value out of range, or a schedule that never comes (30 February).
    """
    words = text.split()
    if len(words) != 5:
        raise Invalid(
            f"cron {text!r} has {len(words)} fields, expected 5: minute hour day-of-month month day-of-week"
        )
    minutes, hours, days, months, weekdays = (
        _field(word, *field) for word, field in zip(words, _FIELDS, strict=True)
    )
    cron = Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(day % 7 for day in weekdays),
        either=not words[2].startswith("*") and not words[4].startswith("*"),
        text=" ".join(words),
    )
    if not cron.either and not any(min(days) <= calendar.monthrange(2024, month)[1] for month in months):
        raise Invalid(f"cron {text!r} never comes: no such day in those months")
    return cron


def _field(word: str, what: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    values: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None or (match[1] == "*" and match[2]):
            raise Invalid(f"cron {what}: {item!r} is not *, a number, a range 1-5 or a step */15")
        first, last, step = match[1], match[2], int(match[3] or 1)
        if step == 0:
            raise Invalid(f"cron {what}: the step of {item!r} is 0, expected at least 1")
        start = low if first == "*" else _value(first, what, low, high, names)
        open_end = high if first == "*" or match[3] else start
        stop = _value(last, what, low, high, names) if last else open_end
        if start > stop:
            raise Invalid(f"cron {what}: {item!r} runs backwards")
        values.update(range(start, stop + 1, step))
    return values


def _value(word: str, what: str, low: int, high: int, names: dict[str, int]) -> int:
    if word.isdigit():
        if len(word) > 4 or not low <= int(word) <= high:
            raise Invalid(f"cron {what}: {word} is outside {low}-{high}")
        return int(word)
    if word.lower() in names:
        return names[word.lower()]
    if names:
        raise Invalid(f"cron {what}: {unknown(word, names, 'a name')}")
    raise Invalid(f"cron {what}: {word!r} is not a number in {low}-{high}")
