"""Moving traffic: each move is one transaction that changes the endpoint, the aliases and the history together.

Nothing here talks to serving. Serving reads the wanted state and follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection

from modelkeep.core.errors import Conflict, NotFound, Refused
from modelkeep.registry import endpoints, events, models
from modelkeep.registry.endpoints import Rollout, Route, Wanted
from modelkeep.registry.models import Version
from modelkeep.spec.expressions import RolloutStep


def begin(
    conn: Connection,
    version: Version,
    *,
    endpoint: str,
    settings: dict[str, Any],
    steps: Sequence[RolloutStep],
    now: float,
    because: str,
) -> bool:
    """Start giving a new version traffic: step by step, or at once when it is the first or there are no steps.

    Returns:
        Whether the version is champion already.
    """
    models.set_alias(conn, version.model, "challenger", version.version, now)
    before = endpoints.get(conn, endpoint)
    if before is not None and before.model != version.model:
        raise Conflict(
            f"endpoint {endpoint!r} belongs to model {before.model!r}",
            hint="give this model another name under deploy.endpoint",
        )
    stable = _stable(before)
    if before is None or stable is None or not steps:
        _crown(conn, version, endpoint=endpoint, settings=settings, now=now, because=because)
        return True
    routes = _routes(stable, version, steps[0])
    rollout = Rollout(version=version.version, step=0, since=now, started=now)
    endpoints.put(conn, replace(before, routes=routes, rollout=rollout, settings=settings))
    replaced = before.rollout.version if before.rollout else None
    events.append(
        conn,
        "rollout.started",
        f"{version.model}@{version.version}",
        {"endpoint": endpoint, "step": steps[0].text, "because": because, "replaces": replaced},
        now=now,
    )
    return False


def beside(
    conn: Connection,
    version: Version,
    *,
    endpoint: str,
    trust: Sequence[str],
    step: RolloutStep,
    now: float,
    because: str,
) -> None:
    """Put a version beside the one that answers, by hand: it stays there until it is deployed or rolled back.

    Again with another step, it goes on from there. What the endpoint is told stays, but for what it trusts.

    Raises:
        NotFound: Nothing answers there yet.
        Conflict: The version has all traffic, or another one is beside it.
    """
    before = live(conn, endpoint)
    stable = _stable(before)
    if stable is None:
        raise NotFound(f"endpoint {endpoint!r} has no champion to stand beside")
    if stable.version == version.version:
        raise Conflict(f"version {version.version} has all traffic of {endpoint!r} already")
    old = before.rollout
    if old is not None and old.version != version.version:
        raise Conflict(
            f"version {old.version} is beside version {stable.version} of {endpoint!r} already",
            hint=f"modelkeep rollback {before.model} ends that, deploy {before.model}@{old.version} lets it win",
        )
    models.set_alias(conn, version.model, "challenger", version.version, now)
    started = now if old is None else old.started
    fresh = Rollout(version=version.version, step=0, since=now, started=started)
    settings = {**before.settings, "trust": list(trust)}
    routes = _routes(stable, version, step)
    endpoints.put(conn, replace(before, routes=routes, rollout=fresh, settings=settings))
    events.append(
        conn,
        "rollout.started" if old is None else "rollout.advanced",
        f"{version.model}@{version.version}",
        {"endpoint": endpoint, "step": step.text, "because": because},
        now=now,
    )


def live(conn: Connection, endpoint: str) -> Wanted:
    """An endpoint that something answers at. Raises ``NotFound``."""
    found = endpoints.get(conn, endpoint)
    if found is None or not found.routes:
        raise NotFound(
            f"nothing answers at endpoint {endpoint!r} yet",
            hint="deploy a version without --canary and --shadow first",
        )
    return found


def advance(
    conn: Connection,
    endpoint: str,
    *,
    version: int,
    step: int,
    steps: Sequence[RolloutStep],
    now: float,
    because: str,
) -> None:
    """Move the rollout of ``version`` to ``step``. Nothing happens when it has moved on already."""
    before = _current(conn, endpoint)
    if before.rollout is None or before.rollout.version != version or before.rollout.step >= step:
        return
    stable = _stable(before)
    if stable is None:
        raise NotFound(f"endpoint {endpoint!r} has no champion to compare with")
    found = models.version(conn, before.model, version)
    rollout = replace(before.rollout, step=step, since=now)
    endpoints.put(conn, replace(before, routes=_routes(stable, found, steps[step]), rollout=rollout))
    events.append(
        conn,
        "rollout.advanced",
        f"{before.model}@{version}",
        {"endpoint": endpoint, "step": steps[step].text, "because": because},
        now=now,
    )


def promote(conn: Connection, endpoint: str, *, version: int, now: float, because: str) -> None:
    """Make ``version`` the champion with all traffic. Nothing happens when its rollout has ended already."""
    before = _current(conn, endpoint)
    if before.rollout is None or before.rollout.version != version:
        return
    found = models.version(conn, before.model, version)
    _crown(conn, found, endpoint=endpoint, settings=before.settings, now=now, because=because)


def abort(conn: Connection, endpoint: str, *, version: int, now: float, because: str) -> None:
    """End the rollout of ``version``; the champion keeps all traffic."""
    before = _current(conn, endpoint)
    if before.rollout is None or before.rollout.version != version:
        return
    stable = _stable(before)
    routes = (replace(stable, weight=1.0),) if stable else ()
    endpoints.put(conn, replace(before, routes=routes, rollout=None))
    models.delete_alias(conn, before.model, "challenger", now)
    events.append(
        conn,
        "rollout.aborted",
        f"{before.model}@{version}",
        {"endpoint": endpoint, "because": because, "champion": stable.version if stable else None},
        now=now,
    )


def appoint(conn: Connection, model: str, version: int, *, now: float, because: str) -> bool:
    """Give all traffic to a version by hand, wherever the model is served, ending any rollout.

    Returns:
        Whether the model is served at all; when it is not, nothing is changed.

    Raises:
        NotFound: There is no such version.
        Refused: It has no package that an endpoint could serve.
    """
    served = [wanted for wanted in endpoints.wanted(conn) if wanted.model == model]
    found = models.version(conn, model, version)
    if served and not found.package:
        raise Refused(
            f"version {version} of {model!r} has no package that endpoint {served[0].endpoint!r} could serve",
            hint="register it with apply, or give it another alias",
        )
    for wanted in served:
        stable = _stable(wanted)
        if wanted.rollout or stable is None or stable.version != version:
            _crown(conn, found, endpoint=wanted.endpoint, settings=wanted.settings, now=now, because=because)
    return bool(served)


def roll_back(conn: Connection, model: str, *, to: int | None, now: float, because: str) -> Version:
    """Give all traffic back to an earlier champion, ending any rollout.

    Args:
        to: The version to go back to; None means the champion before this one, or, while a version stands beside
            it by hand (``beside``), the champion itself.

    Raises:
        NotFound: There is no such version, or no earlier champion.
    """
    served = [wanted for wanted in endpoints.wanted(conn) if wanted.model == model]
    if not served:
        raise NotFound(f"model {model!r} is not deployed")
    by_hand = [one for one in served if one.rollout is not None and "declaration" not in one.settings]
    if to is None and by_hand:
        for one in by_hand:
            abort(conn, one.endpoint, version=one.rollout.version if one.rollout else 0, now=now, because=because)
        return models.version(conn, model, "champion")
    target = to if to is not None else _earlier_champion(conn, model)
    found = models.version(conn, model, target)
    for wanted in served:
        _crown(
            conn,
            found,
            endpoint=wanted.endpoint,
            settings=wanted.settings,
            now=now,
            because=because,
            kind="rolled_back",
        )
    return found


def _earlier_champion(conn: Connection, model: str) -> int:
    current = models.alias(conn, model, "champion")
    past = [
        int(event.subject.rpartition("@")[2])
        for event in events.history(conn, subject=model)
        if event.kind in ("version.promoted", "version.rolled_back")
    ]
    for number in reversed(past):
        if number != current:
            return number
    raise NotFound(f"model {model!r} has had no other champion", hint="name a version: rollback MODEL@VERSION")


def _crown(
    conn: Connection,
    version: Version,
    *,
    endpoint: str,
    settings: dict[str, Any],
    now: float,
    because: str,
    kind: str = "promoted",
) -> None:
    before = models.alias(conn, version.model, "champion")
    route = Route(version=version.version, package=version.package, weight=1.0, mode="stable")
    old = endpoints.get(conn, endpoint)
    fresh = Wanted(
        endpoint=endpoint,
        model=version.model,
        generation=old.generation if old else 0,
        routes=(route,),
        rollout=None,
        settings=settings,
    )
    endpoints.put(conn, fresh)
    models.set_alias(conn, version.model, "champion", version.version, now)
    if models.alias(conn, version.model, "challenger") is not None:
        models.delete_alias(conn, version.model, "challenger", now)
    events.append(
        conn,
        f"version.{kind}",
        f"{version.model}@{version.version}",
        {"endpoint": endpoint, "because": because, "before": before},
        now=now,
    )


def _current(conn: Connection, endpoint: str) -> Wanted:
    found = endpoints.get(conn, endpoint)
    if found is None:
        raise NotFound(f"there is no endpoint {endpoint!r}")
    return found


def _stable(wanted: Wanted | None) -> Route | None:
    routes = wanted.routes if wanted else ()
    return next((route for route in routes if route.mode == "stable"), None)


def _routes(stable: Route, version: Version, step: RolloutStep) -> tuple[Route, ...]:
    if step.kind == "shadow":
        beside = Route(version=version.version, package=version.package, weight=step.weight or 1.0, mode="shadow")
        return (replace(stable, weight=1.0), beside)
    beside = Route(version=version.version, package=version.package, weight=step.weight, mode="canary")
    return (replace(stable, weight=1.0 - step.weight), beside)
