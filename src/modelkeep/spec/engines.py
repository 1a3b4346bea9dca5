"""The addresses of engines: ``local``, ``ray://host:10001``, ``dask://host:8786``, ``spark://host:7077``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from modelkeep.core.errors import Invalid
from modelkeep.spec.names import ENGINES, unknown

Kind = Literal["local", "ray", "dask", "spark"]

PORTS: dict[str, int] = {"ray": 10001, "dask": 8786, "spark": 7077}
"""Where each listens unless told otherwise."""
_SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([KMGT]B|[KMG]iB)", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """An engine's address, taken apart.

    Attributes:
        kind: Which engine.
        host: Empty for an engine started on this machine.
        port: 0 without a host.
        workers: Of ``local://N``; None for one per core.
    """

    kind: Kind
    host: str = ""
    port: int = 0
    workers: int | None = None

    def __str__(self) -> str:
        if self.host:
            return f"{self.kind}://{self.host}:{self.port}"
        return self.kind if self.workers is None else f"{self.kind}://{self.workers}"


def address(text: str) -> Address:
    """Take an engine's address apart.

    Raises:
        Invalid: It is none, at ``engine``.
    """
    kind, sign, rest = text.strip().partition("://")
    if kind not in (*PORTS, "local"):
        raise Invalid(unknown(text, ENGINES, "an engine"), path="engine")
    known = cast(Kind, kind)
    if not sign:
        if kind == "dask":
            raise Invalid("'dask' lacks an address; expected e.g. dask://scheduler:8786", path="engine")
        return Address(known)
    if kind == "local":
        if not re.fullmatch(r"[1-9][0-9]{0,3}", rest):
            raise Invalid(f"{text!r}: expected local://N with at least 1 process", path="engine")
        return Address(known, workers=int(rest))
    match = _HOST.fullmatch(rest.rstrip("/"))
    port = int(match[2] or PORTS[kind]) if match else 0
    if match is None or not 0 < port < 65536:
        raise Invalid(
            f"{text!r}: expected {kind}://host:port, such as {kind}://cluster:{PORTS[kind]}", path="engine"
        )
    return Address(known, match[1], port)


def size(text: str) -> int:
    """Bytes of ``4GB``, ``512MB``, ``1.5GiB``.

    Raises:
        Invalid: The text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        raise Invalid(f"{shown} is not a size; expected a number and a unit, such as '512MB' or '4GB'")
    return int(float(match[1]) * _SIZES[match[2].lower()])
