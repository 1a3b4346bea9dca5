"""Digests of values: the identity of everything that is compared, cached or reproduced.

Bytes are digested by the store (BLAKE3, parallel); values here (BLAKE2b, RFC 7693) from one canonical form.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, is_dataclass
from typing import Any


def of_value(value: Any) -> str:
    """Digest a value made of JSON types, dataclasses, sets and bytes.

    Equal values have equal digests whatever the order of keys; ``1`` and ``1.0`` differ.

    Returns:
        64 hexadecimal characters.

    Raises:
        TypeError: The value holds something with no canonical form.
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": hashlib.blake2b(value, digest_size=32).hexdigest()}
    if is_dataclass(value) and not isinstance(value, type):
        return _canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((_canonical(item) for item in value), key=repr)
    if isinstance(value, Sequence):
        return [_canonical(item) for item in value]
    raise TypeError(f"no canonical form for {type(value).__name__}")
