"""Raw tensors: little-endian, row-major, without padding, as both forms of the protocol carry them.

REST after the JSON head (binary tensor data extension), gRPC in ``raw_input_contents``. BOOL is one byte, 0 or 1.
BF16 is the upper half of a FP32. Each element of BYTES is its length as four bytes, then its bytes.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid

Array = npt.NDArray[Any]
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("u1"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""How the elements of each datatype lie in memory; of all but BYTES."""

_LENGTH: Final = Struct("<I")
_MOST: Final = 2**62


def volume(shape: Sequence[int], path: str) -> int:
    """How many elements a tensor of this shape has.

    Raises:
        Invalid: At ``path``: a dimension is negative, or the product is beyond what can be.
    """
    product = 1
    for size in shape:
        if size < 0:
            raise Invalid(f"{_short(shape)} has a negative dimension; expected 0 or more", path=path)
        product *= size
        if product > _MOST:
            raise Invalid(f"{_short(shape)} has more elements than any tensor can hold", path=path)
    return product


def read(datatype: str, data: bytes | memoryview, count: int, path: str) -> Array | list[str]:
    """The elements of a raw tensor: numbers as an array over ``data`` itself, BYTES as texts.

    Args:
        datatype: BOOL, INT8 to INT64, UINT8 to UINT64, FP16, BF16, FP32, FP64 or BYTES.
        data: Exactly the tensor's bytes.
        count: Elements, as its shape says.
        path: Where the tensor stands in the request, for errors.

    Returns:
        (count,) of the datatype's own type; BOOL as ``bool``, BF16 as ``float32``.

    Raises:
        Invalid: The datatype is unknown, the bytes are too few or too many, a text is not UTF-8.
    """
    if datatype == "BYTES":
        return _texts(bytes(data), count, path)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        known = ", ".join([*DTYPES, "BYTES"])
        raise Invalid(f"{_short(datatype)} is no datatype; expected one of {known}", path=path)
    if len(data) != count * dtype.itemsize:
        wanted = f"{count} x {dtype.itemsize} = {count * dtype.itemsize}"
        raise Invalid(f"{len(data)} bytes; {datatype} elements as the shape says take {wanted}", path=path)
    found = np.frombuffer(data, dtype)
    if datatype == "BOOL":
        if found.size and found.max() > 1:
            place = int(np.argmax(found > 1))
            raise Invalid(f"element {place} is {found[place]}; expected 0 or 1", path=path)
        return found.view(np.bool_)
    if datatype == "BF16":
        return (found.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return found


def _texts(data: bytes, count: int, path: str) -> list[str]:
    if len(data) < 4 * count:
        raise Invalid(f"{len(data)} bytes cannot hold {count} lengths of 4 bytes each", path=path)
    found: list[bytes] = []
    at, end = 0, len(data)
    length, add = _LENGTH.unpack_from, found.append
    while at + 4 <= end:
        start = at + 4
        at = start + length(data, at)[0]
        add(data[start:at])
    if at != end or len(found) != count:
        if at > end:
            raise Invalid(f"element {len(found) - 1} ends {at - end} bytes after the tensor does", path=path)
        more = f" and {end - at} bytes" if at < end else ""
        raise Invalid(f"holds {len(found)} elements{more} where the shape says {count}", path=path)
    try:
        return list(map(bytes.decode, found))
    except UnicodeDecodeError:
        place = next(place for place, one in enumerate(found) if not _is_text(one))
        raise Invalid(f"element {place} is not UTF-8: {_short(found[place])}", path=path) from None


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def write(datatype: str, values: Array) -> bytes:
    """The raw tensor of an array's elements, row-major; what ``read`` gives back.

    Args:
        datatype: As ``read`` takes; objects and texts go as BYTES.
        values: Of any shape.
    """
    if datatype == "BYTES":
        return b"".join(elements(values.reshape(-1).tolist()))
    if datatype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # round to nearest, ties to even, as the hardware that has BF16 does
        rounded = (bits + (((bits >> 16) & np.uint32(1)) + np.uint32(0x7FFF))) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).tobytes()
    return values.astype(DTYPES[datatype], copy=False).tobytes()


def elements(values: Iterable[Any]) -> list[bytes]:
    """Each value as one element of BYTES; what is no text goes as Python shows it."""
    made: dict[Any, bytes] = {}  # the same few labels come again and again
    for value in set(values := list(values)):
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        made[value] = _LENGTH.pack(len(text)) + text
    return [made[value] for value in values]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
