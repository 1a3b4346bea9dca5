"""From raw tensors to rows: how they lie is worked out once per description, then read without touching a value.

A description is name, datatype, shape and bytes of each tensor; clients repeat theirs, so its plan is kept. Shared
by the REST form, where the tensors follow the JSON head, and gRPC's ``raw_input_contents``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.oip import codec, tensors
from modelkeep.serve.columns import Inputs, Rows, shorten

_DIRECT = frozenset(tensors.DTYPES) - {"BOOL", "BF16"}  # NumPy reads these as they are


class Raw(NamedTuple):
    """A raw tensor as its request describes it.

    Attributes:
        size: Its bytes.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    size: int


class Plan:
    """How to read the tensors of requests that describe them alike.

    Args:
        inputs: Of the version that answers.
        described: The tensors, in the order of their bytes.
        ignore_unknown: Whether tensors that are no input are left out rather than refused.

    Raises:
        Invalid: A shape is absurd, a datatype unknown, or they do not take the bytes that are said.
    """

    __slots__ = ("_described", "_ignore", "_inputs", "_order", "_places", "_spans", "_way", "count", "size")

    def __init__(self, inputs: Inputs, described: Sequence[Raw], *, ignore_unknown: bool = False) -> None:
        self._inputs = inputs
        self._described = described
        self._ignore = ignore_unknown
        self._spans: list[tuple[int, int, int]] = []
        at = 0
        for place, one in enumerate(described):
            elements = _checked(place, one)
            self._spans.append((at, at + one.size, elements))
            at += one.size
        self.size = at
        self.count = described[0].shape[0] if described and described[0].shape else 0
        self._order: list[int] | None = None
        self._places: list[int] = []
        self._way = self._choose()

    def _choose(self) -> str:
        inputs, described = self._inputs, self._described
        if self.count < 1:
            return "listed"
        if (
            not inputs.shaped
            and len(described) == 1
            and codec.is_matrix(inputs, described[0].name, described[0].shape)
        ):
            direct = (
                inputs.plain and described[0].datatype in _DIRECT and described[0].shape[1] == len(inputs.names)
            )
            return "matrix" if direct else "listed"
        places = [codec.place_of(inputs, one.name, len(described)) for one in described]
        fields = [inputs.signature.inputs[place] if place >= 0 else None for place in places]
        known = [place for place in places if place >= 0]
        if (
            (len(known) < len(places) and not self._ignore)
            or len(set(known)) < len(known)
            or any(inputs.index[name] not in known for name in inputs.required)
            or any(
                field is not None and not codec.has_shape(field, one.shape, self.count)
                for field, one in zip(fields, described, strict=True)
            )
            or any(
                place >= 0 and not codec.fits(one.datatype, inputs.types[place])
                for place, one in zip(places, described, strict=True)
            )
        ):
            return "listed"
        self._places = places
        kinds = {one.datatype for one in described}
        if (
            inputs.plain
            and len(known) == len(places) == len(inputs.names)
            and len(kinds) == 1
            and kinds <= _DIRECT
        ):
            if inputs.shaped:
                return "matrix" if len(places) == 1 else "columns"
            by_input = sorted(range(len(places)), key=places.__getitem__)
            self._order = None if by_input == list(range(len(places))) else by_input
            return "block"
        return "columns"

    def rows(self, data: bytes, start: int = 0) -> Rows:
        """The rows in ``data`` from ``start`` on: numbers as arrays over ``data`` itself wherever they lie well.

        Args:
            data: Exactly ``size`` bytes from ``start``.

        Raises:
            Invalid: Bytes are missing or left over, an element is wrong, or the tensors do not fit the inputs.
        """
        if len(data) - start != self.size:
            self._wrong_size(len(data) - start)
        if self._way == "listed":
            return self._listed(memoryview(data)[start:])
        if self._way == "columns":
            return self._columns(memoryview(data)[start:])
        dtype = tensors.DTYPES[self._described[0].datatype]
        width = self._inputs.width
        flat = np.frombuffer(data, dtype, self.count * width, start)
        if self._way == "matrix":
            return Rows(self.count, block=flat.reshape(self.count, width).T)
        block = flat.reshape(width, self.count)
        return Rows(self.count, block=block if self._order is None else block[self._order])

    def _wrong_size(self, found: int) -> None:
        problems = [
            Problem(f"inputs[{place}]", f"ends {end - found} bytes after the body does")
            for place, (_, end, _) in enumerate(self._spans)
            if end > found
        ]
        left = Problem("inputs", f"take {self.size} bytes; {found - self.size} more follow them")
        raise Invalid(problems[:20] or [left])

    def _columns(self, data: memoryview) -> Rows:
        found = {}
        for place, at in enumerate(self._places):
            if at >= 0:
                name, values = self._inputs.names[at], self._read(data, place)
                if not self._inputs.shaped:
                    found[name] = values
                elif isinstance(values, list):
                    found[name] = codec.split(self._inputs, name, values)
                else:
                    found[name] = values.reshape(self.count, *self._inputs.signature.inputs[at].shape)
        return Rows(self.count, columns=found)

    def _read(self, data: memoryview, place: int) -> tensors.Array | list[str]:
        begin, end, elements = self._spans[place]
        return tensors.read(self._described[place].datatype, data[begin:end], elements, f"inputs[{place}]")

    def _listed(self, data: memoryview) -> Rows:
        """Whatever is odd goes the way of JSON, which says what is wrong, or that nothing is."""
        made = []
        for place, one in enumerate(self._described):
            values = self._read(data, place)
            listed = values if isinstance(values, list) else values.tolist()
            made.append(codec.Tensor(one.name, list(one.shape), one.datatype, listed))
        return codec.rows(self._inputs, made, ignore_unknown=self._ignore)


def _checked(place: int, one: Raw) -> int:
    """How many elements a tensor has, if its bytes are as many as they take."""
    path = f"inputs[{place}]"
    elements = tensors.volume(one.shape, f"{path}.shape")
    if one.datatype == "BYTES":
        needed = 4 * elements
        wrong = one.size < needed
    else:
        dtype = tensors.DTYPES.get(one.datatype)
        if dtype is None:
            raise Invalid([codec.unknown_datatype(place, one.datatype)])
        needed = dtype.itemsize * elements
        wrong = one.size != needed
    if wrong:
        least = "at least " if one.datatype == "BYTES" else ""
        shown = shorten(list(one.shape))
        message = f"has {one.size} bytes; {one.datatype} of shape {shown} takes {least}{needed}"
        raise Invalid(message, path=path)
    return elements
