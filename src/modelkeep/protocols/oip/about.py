"""What the protocol's extensions tell of what is served: model configuration, statistics, the repository's index.

https://github.com/triton-inference-server/server/tree/main/docs/protocol (extension_model_configuration,
extension_statistics, extension_model_repository)
"""

from __future__ import annotations

import time
from typing import Any, Final

from modelkeep.core.errors import NotFound, Unavailable
from modelkeep.protocols.access.asgi import asking
from modelkeep.protocols.oip.codec import DATATYPE_OF
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.endpoint import Endpoint
from modelkeep.serve.metrics import Totals

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""Of the protocol's extensions those that are here, by their names in the server's metadata."""
PATIENCE: Final = 60.0
"""Seconds that whoever has a model loaded or unloaded waits for it."""


def config(endpoint: Endpoint, version: str = "") -> dict[str, Any]:
    """The model's configuration as Triton's ``ModelConfig`` in JSON. Raises ``NotFound``."""
    lane = endpoint.lane("", version) if version else endpoint.lead
    signature = lane.loaded.signature
    return {
        "name": endpoint.name,
        "platform": f"modelkeep_{lane.loaded.runtime}",
        "backend": lane.loaded.runtime,
        "version_policy": {"specific": {"versions": endpoint.versions}},
        "max_batch_size": lane.limits.max_rows,
        "input": [
            {**_tensor(one.name, DATATYPE_OF[one.type], one.shape), "optional": not one.required}
            for one in signature.inputs
        ],
        "output": [_tensor(one.name, DATATYPE_OF[one.type], one.shape) for one in signature.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(lane.limits.wait * 1e6)},
        "instance_group": [{"name": endpoint.name, "kind": "KIND_CPU", "count": lane.limits.concurrency}],
    }


def _tensor(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Dimensions leave out that of the batch; Triton has no scalars, so they are vectors of one."""
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    scalar: dict[str, Any] = {} if shape else {"reshape": {"shape": []}}
    return {"name": name, "data_type": kind, "dims": list(shape or (1,)), **scalar}


def statistics(plane: DataPlane, name: str = "", version: str = "") -> dict[str, Any]:
    """What each version answered, as Triton counts it; times are cumulative nanoseconds.

    Args:
        name: An endpoint; empty for all.
        version: One of its versions; empty for all.

    Raises:
        NotFound, Unavailable: There is no such endpoint or version.
    """
    wanted = plane.endpoint(name).name if name else ""
    number = plane.endpoint(name).lane("", version).channel.version if version else None
    lines = [
        line
        for line in plane.totals()
        if line.mode != "shadow" and line.endpoint == (wanted or line.endpoint) and number in (None, line.version)
    ]
    return {"model_stats": [_statistics(line) for line in lines]}


def _statistics(line: Totals) -> dict[str, Any]:
    def spent(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    return {
        "name": line.endpoint,
        "version": str(line.version),
        "last_inference": round(line.last * 1e3),
        "inference_count": line.rows,
        "execution_count": line.batches,
        "inference_stats": {
            "success": spent(line.requests, line.seconds),
            "fail": spent(line.failures, 0.0),
            "queue": spent(line.requests, line.queue),
            "compute_input": spent(line.requests, line.input),
            "compute_infer": spent(line.requests, line.infer),
            "compute_output": spent(line.requests, line.output),
            "cache_hit": spent(line.hits, 0.0),
            "cache_miss": spent(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": spent(runs.count, runs.input),
                "compute_infer": spent(runs.count, runs.infer),
                "compute_output": spent(runs.count, runs.output),
            }
            for size, runs in sorted(line.sizes.items())
        ],
    }


def index(plane: DataPlane, *, ready: bool = False) -> list[dict[str, str]]:
    """Every version of every endpoint that is wanted, and whether it is in memory.

    Args:
        ready: Whether to leave out those that cannot.
    """
    found = [
        {
            "name": endpoint.name,
            "version": str(version),
            "state": "READY" if (here := endpoint.lane("", str(version)).loaded.here) else "UNAVAILABLE",
            "reason": "" if here else "not in memory; its next request loads it",
        }
        for endpoint in plane.endpoints.values()
        for version in endpoint.versions
    ]
    if ready:
        found = [one for one in found if one["state"] == "READY"]
    else:
        absent = dict.fromkeys(plane.unloaded, "unloaded") | plane.faults
        found += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason}
            for name, reason in absent.items()
            if name not in plane.endpoints
        ]
    return found


def load(plane: DataPlane, name: str) -> None:
    """See that the versions a model's routes lead to are in memory. Blocks while one of them is loaded.

    One that was unloaded comes back, in every serving process.

    Raises:
        NotFound: No deployment wants it.
        Unavailable: It could not be loaded, and why.
    """
    if name in plane.unloaded:
        _move(plane, name, away=False)
    if name in plane.faults:
        raise Unavailable(f"{name[:60]!r} cannot be loaded: {plane.faults[name]}", hint="it is tried every second")
    try:
        endpoint = plane.endpoint(name)
    except NotFound as error:
        raise NotFound(
            str(error), hint="what is served is declared: apply a declaration that deploys it"
        ) from None
    for route in endpoint.wanted.routes:
        endpoint.lane("", str(route.version)).loaded.bring()


def unload(plane: DataPlane, name: str) -> None:
    """Take an endpoint out of the memory of every serving process until it is loaded. Blocks until it is here.

    Its deployment stands: ``load`` brings it back, and so does applying its declaration.

    Raises:
        NotFound: There is no such endpoint.
        Unavailable: The database is away.
    """
    _move(plane, name if name in plane.unloaded else plane.endpoint(name).name, away=True)


def _move(plane: DataPlane, name: str, *, away: bool) -> None:
    if plane.allowed is not None:
        plane.allowed(name, name)
    if plane.unload is None:
        raise Unavailable(f"{name!r}: nothing is known here of where deployments are kept")
    who = asking()
    plane.unload(name, away, "modelkeep" if who is None else who.name)
    until = time.monotonic() + PATIENCE
    while (name in plane.unloaded) != away and (away or name not in plane.faults):
        if time.monotonic() > until:
            raise Unavailable(f"{name!r} is told, but takes longer than {PATIENCE:g} seconds here")
        time.sleep(0.02)
