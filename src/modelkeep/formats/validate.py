"""The check of a request against a signature: vectorised, strict, and exact about what is wrong where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.batch import Batch, Layout, as_number
from modelkeep.formats.signature import Field, Signature
from modelkeep.formats.tensors import flattened

Array = npt.NDArray[Any]
Given = Mapping[str, Sequence[Any] | Array]

MOST_PROBLEMS = 20
"""Problems listed of one request."""

_EXPECTED = {
    "int64": "a whole number",
    "float64": "a number",
    "bool": "true or false",
    "string": "a string",
    "timestamp": "an ISO 8601 time or microseconds since 1970 UTC",
}
_LARGEST = float(np.finfo(np.float64).max)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Checker:
    """Turns what a request gave into a batch, or says everything that is wrong with it. Made once per model.

    JSON lists and NumPy arrays are both taken. Missing optional inputs are filled as in training. A value outside
    the range seen in training is drift, and judged as such; it is an error only where the field is ``strict``.
    ``true`` counts as 1 where a number is wanted, 0 and 1 as truth values. A tensor's rows are lists of its
    values, flat or nested, or one array.

    Args:
        signature: What must hold.
        unknown: What to do with inputs the signature does not name.

    Attributes:
        bounds: The lowest and the highest numbers allowed, each (``layout.number_rows``,), infinite where there
            is no bound; None when no field is strict about its range.
    """

    def __init__(self, signature: Signature, *, unknown: Literal["refuse", "ignore"] = "refuse") -> None:
        self.layout = Layout(signature)
        self.refuse = unknown == "refuse"
        fields = self.layout.fields
        single = [name for name in self.layout.numbers if not fields[name].shape]
        self._plain = [name for name in single if fields[name].type != "timestamp"]
        self._times = [name for name in single if fields[name].type == "timestamp"]
        self._tensors = [name for name in self.layout.numbers if fields[name].shape]
        at = self.layout.number_at
        self._plain_at = np.array([at[name] for name in self._plain], np.intp)
        whole = [place for place, name in enumerate(self._plain) if fields[name].type == "int64"]
        truth = [place for place, name in enumerate(self._plain) if fields[name].type == "bool"]
        self._whole, self._truth = np.array(whole, np.intp), np.array(truth, np.intp)
        self._plain_required = np.array([fields[name].required for name in self._plain], np.bool_)
        self._known = {
            name: frozenset(fields[name].categories or ()) for name in self.layout.strings if fields[name].strict
        }
        self._optional = {name for name, field in fields.items() if not field.required}
        self.bounds = _bounds([fields[name] for name in self.layout.numbers])
        self._ranged = np.array([place for place, name in enumerate(self._plain) if fields[name].strict], np.intp)

    def check(self, columns: Given, rows: int) -> Batch:
        """Check and convert.

        Args:
            columns: Equally long lists or arrays by input name.
            rows: How long.

        Raises:
            Invalid: Every problem found, up to 20, at paths like ``inputs.distance[3]``.
        """
        given, problems = self._present(columns, rows)
        numbers = self._numbers(given, rows, problems)
        for name in self._times:
            numbers[self.layout.number_at[name]] = _times(name, given[name], self.layout.fields[name], problems)
        for name in self._tensors:
            numbers[self.layout.span(name)] = _tensor(name, given[name], self.layout.fields[name], problems).T
        strings, whole = self._strings(given, rows, problems)
        if problems:
            raise Invalid(problems[:MOST_PROBLEMS])
        return Batch(self.layout, numbers, strings, whole=whole)

    def _present(self, columns: Given, rows: int) -> tuple[Given, list[Problem]]:
        """All inputs, with the optional ones that were left out."""
        fields = self.layout.fields
        problems: list[Problem] = []
        given = columns
        if self.refuse and not columns.keys() <= fields.keys():
            known = ", ".join(list(fields)[:50])
            for name in columns.keys() - fields.keys():
                problems.append(Problem(f"inputs.{name}", f"the model has no such input; it takes {known}"))
        lacking = fields.keys() - columns.keys()
        if lacking:
            given = {**columns, **{name: [None] * rows for name in lacking}}
            for name in [name for name in fields if name in lacking - self._optional]:
                problems.append(Problem(f"inputs.{name}", f"is missing, expected {_wanted(fields[name])}"))
        for name in fields:
            if len(given[name]) != rows:
                problems.append(Problem(f"inputs.{name}", f"has {len(given[name])} values, expected {rows}"))
        if problems:
            raise Invalid(problems[:MOST_PROBLEMS])
        return given, problems

    def _numbers(self, given: Given, rows: int, problems: list[Problem]) -> Array:
        block = np.empty((self.layout.number_rows, rows))
        if not self._plain:
            return block
        plain = self._block([given[name] for name in self._plain], rows, problems)
        if not np.isfinite(plain).all():
            self._not_finite(plain, given, problems)
        if len(self._whole):
            part = plain[self._whole]
            self._fault(self._whole, (part != np.floor(part)) & np.isfinite(part), given, problems)
        if len(self._truth):
            part = plain[self._truth]
            self._fault(self._truth, (part != 0) & (part != 1) & np.isfinite(part), given, problems)
        if self.bounds is not None and len(self._ranged):
            part = plain[self._ranged]
            low, high = (end[self._plain_at[self._ranged], np.newaxis] for end in self.bounds)
            self._fault(self._ranged, (part < low) | (part > high), given, problems)
        if not self._times and not self._tensors:
            return plain
        block[self._plain_at] = plain
        return block

    def _block(self, columns: list[Any], rows: int, problems: list[Problem]) -> Array:
        """The plain numbers as float64 (k, n), in one step when nothing is odd."""
        try:
            made = np.array(columns)
        except (ValueError, OverflowError):
            made = np.empty(0, dtype=object)
        if made.dtype.kind in "fiub" and made.shape == (len(columns), rows):
            return made if made.dtype == np.float64 else made.astype(np.float64)
        made = np.empty((len(columns), rows))
        for place, (name, values) in enumerate(zip(self._plain, columns, strict=True)):
            made[place] = _number_column(name, values, self.layout.fields[name], problems)
        return made

    def _not_finite(self, plain: Array, given: Given, problems: list[Problem]) -> None:
        self._fault(range(len(plain)), np.isinf(plain), given, problems)
        required = np.flatnonzero(self._plain_required)
        self._fault(required, np.isnan(plain[required]), given, problems)

    def _fault(self, places: Sequence[int] | Array, wrong: Array, given: Given, problems: list[Problem]) -> None:
        """A problem for every True of ``wrong`` (len(places), n) not already reported."""
        if not wrong.any():
            return
        known = {problem.path for problem in problems}
        for part, row in np.argwhere(wrong)[:MOST_PROBLEMS]:
            name = self._plain[int(places[part])]
            problem = _unexpected(name, int(row), given[name][row], self.layout.fields[name])
            if problem.path not in known:
                problems.append(problem)

    def _strings(self, given: Given, rows: int, problems: list[Problem]) -> tuple[Array, bool]:
        block = np.empty((self.layout.string_rows, rows), dtype=object)
        whole = True
        for name, place in self.layout.string_at.items():
            field = self.layout.fields[name]
            if field.shape:
                block[self.layout.span(name)] = _text_tensor(name, given[name], field, problems).T
                continue
            values = _texts(name, given[name], field, problems)
            known = self._known.get(name)
            distinct = set(values) if known is not None or not field.required else set()
            whole = whole and None not in distinct
            if known is not None and not distinct - {None} <= known:
                _unseen(name, values, known, problems)
            block[place] = values
        return block, whole


def _bounds(fields: Sequence[Field]) -> tuple[Array, Array] | None:
    """The ends of what numbers may be; see ``Checker.bounds``."""
    ends = [_ends(field) for field in fields]
    if all(math.isinf(end) for pair in ends for end in pair):
        return None
    low, high = np.repeat(ends, [field.size for field in fields], axis=0).T
    return low, high


def _ends(field: Field) -> tuple[float, float]:
    low = field.min if field.strict and field.min is not None else -math.inf
    high = field.max if field.strict and field.max is not None else math.inf
    return (_beyond(low, -math.inf), _beyond(high, math.inf)) if field.type == "float64" else (low, high)


def _beyond(end: float, toward: float) -> float:
    """A step of single precision further: a number may have been through it, on its way here or into training."""
    with np.errstate(over="ignore"):
        found = float(np.nextafter(np.float32(end), np.float32(toward)))
    return found if math.isfinite(found) else end


def _wanted(field: Field) -> str:
    """What is expected, with the range of a strict number or time."""
    expected = _EXPECTED[field.type]
    low, high = (None if end is None or not field.strict else _end(end, field) for end in (field.min, field.max))
    if low is None:
        return expected if high is None else f"{expected} of at most {high}"
    return f"{expected} of at least {low}" if high is None else f"{expected} from {low} to {high}"


def _end(value: float, field: Field) -> str:
    if field.type == "timestamp":
        return str(np.datetime64(int(value), "us"))
    return f"{value:.15g}" if field.type == "float64" or not value.is_integer() else str(int(value))


def _unexpected(name: str, row: int, found: Any, field: Field) -> Problem:
    expected = _wanted(field)
    if _missing(found):
        return Problem(f"inputs.{name}[{row}]", f"is missing, expected {expected}")
    return Problem(f"inputs.{name}[{row}]", f"found {shown(found)}, expected {expected}")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """A value as an error shows it: never long, whatever was sent."""
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print really long ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number_column(name: str, values: Any, field: Field, problems: list[Problem]) -> Array:
    """One column value by value, for the batch in which something is odd."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub" and values.ndim == 1:
        return values.astype(np.float64)
    made = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, int | float | np.number | np.bool_):
            try:
                made[row] = value
                continue
            except (OverflowError, TypeError):
                pass
        made[row] = 0.0  # reported here, so that it is not reported again as missing
        if len(problems) < MOST_PROBLEMS:
            problems.append(_unexpected(name, row, value, field))
    return made


def _tensor(name: str, values: Any, field: Field, problems: list[Problem]) -> Array:
    """The rows of a tensor of numbers as float64 (n, values of a row)."""
    shape = (len(values), field.size)
    try:
        made = np.array(values)
    except (ValueError, OverflowError):
        made = np.empty(0, dtype=object)
    if made.dtype.kind in "fiub" and made.size == math.prod(shape):
        block = made.reshape(shape).astype(np.float64)
    else:
        block = np.zeros(shape)
        for row, one in enumerate(_rows_of(name, values, field)):
            at = next((at for at, value in enumerate(one) if not _is_number(value)), -1)
            if at < 0:
                block[row] = list(map(float, one))
            else:
                problems.append(_in_tensor(name, row, at, one[at], field))
    wrong = ~np.isfinite(block)
    if field.type == "int64":
        wrong |= block != np.floor(block)
    elif field.type == "bool":
        wrong |= (block != 0) & (block != 1)
    for row in np.flatnonzero(wrong.any(axis=1))[:MOST_PROBLEMS].tolist() if wrong.any() else ():
        at = int(wrong[row].argmax())
        problems.append(_in_tensor(name, row, at, block[row, at], field))
    return block


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not abs(value) > _LARGEST


def _text_tensor(name: str, values: Any, field: Field, problems: list[Problem]) -> Array:
    """The rows of a tensor of strings as objects (n, values of a row)."""
    made = np.empty((len(values), field.size), dtype=object)
    for row, one in enumerate(_rows_of(name, values, field)):
        at = next((at for at, value in enumerate(one) if not isinstance(value, str)), -1)
        if at >= 0:
            problems.append(_in_tensor(name, row, at, one[at], field))
        else:
            made[row] = one
    return made


def _rows_of(name: str, values: Any, field: Field) -> list[list[Any]]:
    """Each row's values, flat. Raises ``Invalid`` when a row has another shape."""
    found = []
    for row, one in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        flat = isinstance(one, list) and len(one) == field.size and list not in set(map(type, one))
        found.append(one if flat else flattened([one], field.shape, f"inputs.{name}", row))
    return found


def _in_tensor(name: str, row: int, at: int, value: Any, field: Field) -> Problem:
    place = list(map(int, np.unravel_index(at, field.shape)))
    expected = _EXPECTED[field.type]
    return Problem(f"inputs.{name}[{row}]", f"found {shown(value)} at {place}, expected {expected}")


def _times(name: str, values: Any, field: Field, problems: list[Problem]) -> Array:
    """Microseconds since 1970 UTC as float64, NaN for missing."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "Mfiu":
        made = as_number(values)
    else:
        made = np.array([_micros(value) for value in values], np.float64)
    low, high = _ends(field)
    wrong = np.isinf(made) | (made < low) | (made > high)
    if field.required:
        wrong |= np.isnan(made)
    for row in np.flatnonzero(wrong)[:MOST_PROBLEMS]:
        problems.append(_unexpected(name, int(row), values[row], field))
    return made


def _micros(value: Any) -> float:
    """NaN for missing, infinity for what is no time."""
    if value is None:
        return float("nan")
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return float("inf")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        gone = moment - _EPOCH
        return float((gone.days * 86_400 + gone.seconds) * 1_000_000 + gone.microseconds)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("inf")


def _texts(name: str, values: Any, field: Field, problems: list[Problem]) -> list[Any]:
    """The strings as a list; bytes are UTF-8."""
    found = values.tolist() if isinstance(values, np.ndarray) else values
    kinds = set(map(type, found))
    if kinds <= {str} or (not field.required and kinds <= {str, type(None)}):
        return list(found)
    made: list[Any] = []
    for row, value in enumerate(found):
        text = value
        if isinstance(value, bytes):
            try:
                text = value.decode()
            except UnicodeDecodeError:
                text = value
        missing = _missing(value)
        if (missing and field.required) or not (missing or isinstance(text, str)):
            if len(problems) < MOST_PROBLEMS:
                problems.append(_unexpected(name, row, value, field))
            text = ""
        made.append(None if missing else text)
    return made


def _unseen(name: str, values: list[Any], known: frozenset[str], problems: list[Problem]) -> None:
    reported = {problem.path for problem in problems}
    some = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
    for row, value in enumerate(values):
        path = f"inputs.{name}[{row}]"
        if value is not None and value not in known and path not in reported:
            problems.append(Problem(path, f"{shown(value)} was never seen in training, expected one of {some}"))
            if len(problems) >= MOST_PROBLEMS:
                return
