"""What MLflow accepts: names, lengths and counts, refused with its own words.

Source: mlflow.org/docs, "REST API", request limits; the messages are those people's scripts match.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any

from modelkeep.core.errors import Invalid

MAX_METRICS = 1000
MAX_PARAMS_TAGS = 100
MAX_BATCH = 1000
MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
MAX_REGISTRY_TAG = 100_000
MAX_EXPERIMENT_NAME = 500
MAX_EXPERIMENT_TAG = 20_000

TRUNCATE = "MLFLOW_TRUNCATE_LONG_VALUES"
"""What says in the environment whether long values of params and of runs' tags are cut, or refused."""

LOCAL = ("file", "sqlite")
"""Schemes of what is on some machine's own disk."""

_LARGEST = 2**63 - 1
_MOST_FINE = 10_000
_NAME = re.compile(r"[/\w.\- :]*\Z")
_RUN_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}\Z")
_ALIAS = re.compile(r"[\w\-]+\Z")
_NO_NAME = re.compile(r"[\\\x00-\x1f\x7f]|%(2e|2f|5c|25|00|c0|c1)", re.IGNORECASE)
_VERSION_ALIAS = re.compile(r"[vV]\d+\Z")


def invalid(path: str, value: Any, why: str = "") -> Invalid:
    """A value that is refused, in MLflow's words."""
    shown = str(value)
    if len(shown) > 100:
        shown = f"{shown[:100]}..."
    return Invalid(f"Invalid value {shown!r} for parameter '{path}' supplied{': ' + why if why else ''}")


_fine_keys: set[str] = set()
"""Names that were found to be right: training logs the same few again and again."""


def key(name: str, path: str) -> None:
    """A metric's, param's or tag's name. Raises ``Invalid``."""
    if name in _fine_keys:
        return
    _look_at_key(name, path)
    if len(_fine_keys) >= _MOST_FINE:
        _fine_keys.clear()
    _fine_keys.add(name)


def _look_at_key(name: str, path: str) -> None:
    if not name:
        raise Invalid(f"Missing value for required parameter '{path}'. A key name must be provided.")
    if not _NAME.match(name):
        raise invalid(
            path,
            name,
            "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ),"
            " colon(:) and slashes (/).",
        )
    if posixpath.normpath(name) != name or name in (".", "..") or name.startswith(("../", "/")):
        raise invalid(
            path, name, f"Names may be treated as files in certain cases, and must not resolve to others: {name!r}"
        )
    length(path, name, MAX_KEY)


def length(path: str, value: str, limit: int) -> None:
    """At most so many characters. Raises ``Invalid``."""
    if len(value) > limit:
        raise Invalid(f"'{path}' exceeds the maximum length of {limit} characters")


def cut(path: str, value: str, limit: int) -> str:
    """The first characters of a text that is too long, as MLflow keeps it.

    Raises:
        Invalid: ``MLFLOW_TRUNCATE_LONG_VALUES`` is ``false`` or ``0``.
    """
    if os.environ.get(TRUNCATE, "").lower() in ("false", "0"):
        length(path, value, limit)
    return value[:limit]


def whole(path: str, value: int) -> None:
    """A whole number that fits 64 bits. Raises ``Invalid``."""
    if not -_LARGEST - 1 <= value <= _LARGEST:
        raise invalid(path, value, "expected a 64-bit integer")


def stamp(path: str, value: int) -> None:
    """A time in milliseconds since 1970. Raises ``Invalid``."""
    if not 0 <= value <= _LARGEST:
        raise invalid(path, value, "expected a nonnegative 64-bit integer")


def count(what: str, found: int, limit: int) -> None:
    """At most so many in one request. Raises ``Invalid``."""
    if found > limit:
        raise Invalid(
            f"A batch logging request can contain at most {limit} {what}. Got {found} {what}."
            f" Please split up {what} across multiple requests and try again."
        )


def run_id(value: str) -> None:
    """The form of a run's id. Raises ``Invalid``."""
    if not _RUN_ID.match(value):
        raise invalid("run_id", value)


def experiment_id(value: str) -> int:
    """An experiment's number. Raises ``Invalid``."""
    if not (value.isascii() and value.isdecimal()) or len(value) > 18:
        raise Invalid(f"Invalid experiment ID '{value[:100]}'. Experiment ID must be a valid integer.")
    return int(value)


def plain(value: str, path: str) -> None:
    """A name that no client can take for a path of its own when it makes a folder of it. Raises ``Invalid``."""
    if _NO_NAME.search(value) or value in (".", ".."):
        raise invalid(path, value, "expected a name without backslashes, control characters and escapes of either")


def model_name(value: str) -> None:
    """A registered model's name. Raises ``Invalid``."""
    if not value:
        raise Invalid("Missing value: registered model name must be a non-empty string.")
    if any(mark in value for mark in "/:"):
        raise Invalid(f"Invalid model name: '{value}'. Names cannot contain any of the characters / :")
    plain(value, "name")
    length("name", value, 256)


def version_number(value: str) -> int:
    """A version's number. Raises ``Invalid``."""
    if not (value.isascii() and value.isdecimal()) or len(value) > 9:
        raise Invalid(f"Model version must be an integer, got '{value[:100]}'")
    return int(value)


def alias(value: str) -> None:
    """A name that may be given to a version. Raises ``Invalid``."""
    if not value:
        raise Invalid("Registered model alias name cannot be empty.")
    if not _ALIAS.match(value):
        raise Invalid(
            f"Invalid alias name: '{value}'. Names may only contain alphanumerics, underscores (_),"
            " and dashes (-)."
        )
    length("Registered model alias name", value, 255)


def free_alias(value: str) -> None:
    """An alias that means nothing already. Raises ``Invalid``."""
    alias(value)
    if _VERSION_ALIAS.match(value):
        raise Invalid(f"Version aliases like '{value}' are reserved: it would read as a version number.")
    if value.lower() == "latest":
        raise Invalid("'latest' alias name (case insensitive) is reserved.")


def page(found: int, limit: int, *, name: str = "max_results") -> None:
    """How many rows a page may have. Raises ``Invalid``."""
    if not 1 <= found <= limit:
        raise invalid(name, found, f"expected a number from 1 to {limit}")
