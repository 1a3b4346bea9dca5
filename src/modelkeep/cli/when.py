"""Times given on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

from modelkeep.core.errors import Invalid


def parse_moment(text: str) -> float:
    """An ISO 8601 time in seconds since 1970; UTC unless it says otherwise.

    Raises:
        Invalid: It is not one.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a time; expected such as 2013-06-01 or 2013-06-01T12:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
