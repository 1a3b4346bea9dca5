"""``apply``: make it so. Snapshot, prepare, train, evaluate, package, gate, register, roll out."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.ports import Progress, Silent
from modelkeep.data.snapshots import Snapshot, Snapshots
from modelkeep.lifecycle import deployment, locks, rollout, stages
from modelkeep.lifecycle import made as made_of
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.made import Made
from modelkeep.lifecycle.progress import Stage, Teller
from modelkeep.registry import endpoints, models
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.expressions import parse_rollout
from modelkeep.train.results import GateResult


class Applied(Struct, frozen=True, kw_only=True):
    """What an apply did.

    Attributes:
        model: Registered name.
        version: The version the declaration stands for; None when its gates refused it.
        champion: Whether it has all traffic.
        passed: Whether every gate passed.
        stages: What ran and what was reused.
        gates: How each gate was decided.
        metrics: Of the evaluation, by name.
        run_id: The run that trained it.
        note: How it stands, as a sentence.
    """

    model: str
    version: int | None
    champion: bool
    passed: bool
    stages: tuple[Stage, ...]
    gates: tuple[GateResult, ...]
    metrics: dict[str, float | None]
    run_id: str
    note: str


def apply(
    keep: Keep,
    declaration: Declaration,
    progress: Progress | None = None,
    *,
    because: str = "applied",
    actor: str = "apply",
) -> Applied:
    """Make what the declaration says true. Repeating it changes nothing; after a kill it goes on where it stopped.

    Args:
        progress: Who watches.
        because: Why, for the history.
        actor: Who, for the history.

    Raises:
        Invalid: The declaration or the data cannot be used; every problem is named.
        Refused: Too many rows failed the checks, or the model may not be kept.
        Conflict: The same model is being applied by another process, or its endpoint serves another model.
        Unavailable: The disk is full, or a source is away.
    """
    teller = Teller(progress or Silent())
    with locks.held(keep.home, f"apply-{declaration.model}", doing=f"applying {declaration.model}"):
        with keep.db.read() as conn:
            deployment.own(conn, declaration)  # before the work, not after it
        snapshot, fresh = _snapshot(keep, declaration, teller)
        keys = stages.keys(declaration, snapshot.digest, keep.base)
        with keep.db.read() as conn:
            champion = made_of.champion(conn, declaration.model)
            made = made_of.recall(conn, keys, champion)
        if made is None:
            # these bring all that trains, a second of imports
            from modelkeep.lifecycle.making import Making
            from modelkeep.lifecycle.proving import prove

            making = Making(keep, declaration, snapshot, keys, teller, because)
            made = prove(making, champion, actor, withdraw=fresh or champion is None)
        else:
            for name in stages.NAMES[1:-1]:
                teller.reuse(name, made.said)
        crowned, note = _roll_out(keep, declaration, made, teller, because)
    return Applied(
        model=declaration.model,
        version=made.version,
        champion=crowned,
        passed=made.version is not None,
        stages=tuple(teller.stages),
        gates=made.gates,
        metrics=made.metrics,
        run_id=made.run_id,
        note=note,
    )


def _snapshot(keep: Keep, declaration: Declaration, teller: Teller) -> tuple[Snapshot, bool]:
    """The snapshot of what the source holds now, and whether it is new."""
    store = Snapshots(keep.db, keep.blobs)
    model, now = declaration.model, keep.clock.now()
    before = store.latest(model)
    with teller.stage("snapshot", "look at the source"):
        taken = store.take(
            declaration.data, model, keep.base, now, teller.progress, engine=lambda: keep.engine(declaration)
        )
    if before is None or before.digest != taken.digest:
        return taken, True
    teller.stages.pop()
    teller.reuse("snapshot", f"the source is unchanged: {taken.rows} rows, {taken.digest[:12]}")
    return taken, False


def _roll_out(keep: Keep, declaration: Declaration, made: Made, teller: Teller, because: str) -> tuple[bool, str]:
    model, number, now = declaration.model, made.version, keep.clock.now()
    if number is None:
        return False, made.said
    settings = deployment.settings(declaration, keep.base)
    steps = [parse_rollout(text) for text in declaration.deploy.rollout]

    def move(conn: Connection) -> deployment.Settled:
        asked = deployment.settled(conn, declaration, number, keep.base)
        found = deployment.own(conn, declaration)
        if asked.because:
            version = models.version(conn, model, number)
            if found is not None and any(route.version == number for route in found.routes):
                if found.rollout is not None and found.rollout.version != number:
                    other = found.rollout.version
                    rollout.abort(conn, found.endpoint, version=other, now=now, because=asked.because)
                    found = endpoints.get(conn, found.endpoint) or found
                endpoints.put(conn, msgspec.structs.replace(found, settings=settings))
            else:
                rollout.begin(
                    conn,
                    version,
                    endpoint=declaration.endpoint,
                    settings=settings,
                    steps=steps,
                    now=now,
                    because=because,
                )
        deployment.applied(conn, declaration, number, now)
        return asked

    asked = keep.db.write(move)
    if asked.because:
        with teller.stage("rollout", asked.because):
            pass
    else:
        teller.reuse("rollout", asked.state)
    with keep.db.read() as conn:
        after = deployment.settled(conn, declaration, number, keep.base)
        champion = models.alias(conn, model, "champion") == number
    return champion, after.state
