"""How values look on a page: the template filters. All give plain text, which the templates escape."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import msgspec


def number(value: Any, digits: int = 4) -> str:
    """A number for people: integers with separators, others with ``digits`` significant decimals; – for none."""
    if value is None or isinstance(value, bool | str):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if 1000 <= abs(value) < 10_000:
        return f"{value:,.1f}"
    if value and (abs(value) >= 10_000 or abs(value) < 0.001):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.2e}"
    return f"{value:.{digits - 1}f}" if abs(value) < 10 else f"{value:.{max(digits - 2, 1)}f}"


def percent(value: float | None) -> str:
    """A share as a percentage with at most one decimal."""
    return "–" if value is None else f"{100 * value:.1f}".removesuffix(".0") + " %"


def when(at: float | None) -> str:
    """Seconds since 1970 as a minute in UTC."""
    return "–" if at is None else _utc(at).strftime("%Y-%m-%d %H:%M")


def machine_time(at: float) -> str:
    """Seconds since 1970 for a ``datetime`` attribute (ISO 8601)."""
    return _utc(at).isoformat(timespec="seconds")


def ago(at: float | None, now: float) -> str:
    """How long before ``now``, in the largest fitting unit."""
    if at is None:
        return "–"
    gone = now - at
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if gone >= 2 * length:
            return f"{gone / length:.0f} {unit} ago"
    return "just now"


def short(digest: str) -> str:
    """The first twelve characters of a digest."""
    return digest[:12] if digest else "–"


def plain(value: Any) -> str:
    """Any JSON value on one line; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return msgspec.json.encode(value).decode()


_FIRST = ("text", "because", "summary", "step", "note")
_BAD = ("aborted", "refused", "failed", "rolled_back", "outage", "performance_drop", "damaged")
_GOOD = ("promoted", "passed", "registered")


def told(data: Any) -> str:
    """Evidence on one line: what was written for people first, else names with their values."""
    if not isinstance(data, Mapping):
        return "" if data is None else plain(data)
    said = [str(data[name]) for name in _FIRST if isinstance(data.get(name), str) and data[name]]
    failed = data.get("failed")
    if failed and isinstance(failed, list | tuple):
        said.append("failed " + ", ".join(map(plain, failed)))
    if said:
        return ": ".join(said)
    return ", ".join(f"{name} {_brief(value)}" for name, value in data.items() if value not in (None, "", [], {}))


def tone(kind: str) -> str:
    """The style of an event's kind: good, bad, warn or none."""
    if kind.endswith(_BAD):
        return "bad"
    if kind.endswith(_GOOD):
        return "good"
    return "warn" if kind.startswith(("finding.", "rollout.")) else ""


def _brief(value: Any) -> str:
    text = plain(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return short(text)
    return text if len(text) <= 160 else text[:157] + "..."


def spark(values: list[float], reference: float | None = None) -> dict[str, Any] | None:
    """Points of a small line in a box of 100 by 30; None for fewer than two values."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return None
    around = finite if reference is None else [*finite, reference]
    low, high = min(around), max(around)
    span = (high - low) or 1.0
    step = 100 / (len(finite) - 1)

    def y(value: float) -> float:
        return round(28 - 26 * (value - low) / span, 2)

    points = " ".join(f"{index * step:.2f},{y(value)}" for index, value in enumerate(finite))
    return {"points": points, "base": None if reference is None else y(reference)}


def _utc(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)


FILTERS = {
    "number": number,
    "percent": percent,
    "when": when,
    "machine_time": machine_time,
    "ago": ago,
    "short": short,
    "plain": plain,
    "told": told,
    "tone": tone,
}
