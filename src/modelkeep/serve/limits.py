"""What a deployment says of how it wants to be served."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Problem, Unavailable, Unfit
from modelkeep.registry.endpoints import Wanted
from modelkeep.spec.declaration import Deploy, Replicas
from modelkeep.spec.units import seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one endpoint, in one process. Durations are in seconds.

    Attributes:
        max_rows: Most rows predicted at once.
        wait: How long a batch that is not full waits for more rows.
        budget: Time within which a request should be answered.
        concurrency: Batches of one version predicted at the same time, when it takes long.
        cache_rows: Most rows whose answers are kept.
        cache_bytes: Most memory for them.
        ignore_unknown: Whether inputs that the signature does not name are left out rather than refused.
        redact: Whether errors show only the paths of fields.
    """

    max_rows: int = 16_384
    wait: float = 0.0
    budget: float = 1.0
    concurrency: int = 1
    cache_rows: int = 0
    cache_bytes: int = 0
    ignore_unknown: bool = False
    redact: bool = False


def _deploy(settings: Mapping[str, Any]) -> Deploy:
    try:
        return msgspec.convert((settings.get("declaration") or settings).get("deploy") or {}, Deploy)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), path="deploy", hint="apply the declaration again") from None


def limits(settings: Mapping[str, Any]) -> Limits:
    """The limits in an endpoint's settings, under ``declaration.deploy`` or, without a declaration, ``deploy``.

    Raises:
        Invalid: They hold something that no declaration could.
    """
    deploy = _deploy(settings)
    return Limits(
        max_rows=deploy.batch.max_rows,
        wait=seconds(deploy.batch.wait),
        budget=seconds(deploy.batch.budget),
        concurrency=deploy.concurrency,
        cache_rows=deploy.cache.rows,
        cache_bytes=deploy.cache.bytes,
        ignore_unknown=settings.get("unknown_fields", deploy.unknown_fields) == "ignore",
        redact=deploy.errors == "redacted",
    )


def replicas(wanted: Sequence[Wanted]) -> tuple[int, int, float]:
    """Fewest and most serving processes, and the seconds of quiet before one ends, for all endpoints together.

    Endpoints whose settings cannot be read count as if they had none.
    """
    found: list[Replicas] = []
    for one in wanted:
        with contextlib.suppress(Invalid):
            found.append(_deploy(one.settings).replicas)
    if not found:
        return 1, 1, 60.0
    fewest = max(one.min for one in found)
    return fewest, max(fewest, 1, *(one.max for one in found)), max(seconds(one.quiet) for one in found)


def redacted(error: ModelkeepError) -> ModelkeepError:
    """The error without anything of the request's values, the model or other endpoints: kinds and paths only."""
    if isinstance(error, Invalid):
        return Invalid([Problem(problem.path, "is not what is expected here") for problem in error.problems])
    if isinstance(error, Unfit):
        return Invalid("the model cannot take this input")
    if isinstance(error, NotFound):
        return NotFound("there is no such endpoint, version or alias")
    return error if isinstance(error, Unavailable) else ModelkeepError("the request could not be answered")
