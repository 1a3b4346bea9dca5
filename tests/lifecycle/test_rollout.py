"""Moving traffic: each move changes endpoint, aliases and history together, once however often it is repeated."""

from __future__ import annotations

import pytest

from modelkeep.core.errors import NotFound
from modelkeep.lifecycle import rollout
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import endpoints, events, models
from modelkeep.spec.expressions import parse_rollout
from small import Project

STEPS = tuple(parse_rollout(text) for text in ("shadow 10m", "canary 25% 10m"))
SHADOW, CANARY = ({1: (1.0, "stable"), 2: (1.0, "shadow")}, {1: (0.75, "stable"), 2: (0.25, "canary")})
ROLLOUT = ["shadow 10m", "canary 25% 10m"]


@pytest.fixture
def two(project: Project) -> Project:
    """Version 1 is champion, version 2 is in the shadow."""
    project.declare(lambda said: said.update(deploy={"rollout": ROLLOUT}))
    assert project.apply().champion
    project.declare(lambda said: said["train"]["params"].update(C=0.5))
    assert not project.apply().champion
    return project


def routes(keep: Keep) -> dict[int, tuple[float, str]]:
    with keep.db.read() as conn:
        served = endpoints.get(conn, "late")
        assert served is not None
        return {route.version: (route.weight, route.mode) for route in served.routes}


def alias(keep: Keep) -> tuple[int | None, int | None]:
    with keep.db.read() as conn:
        return models.alias(conn, "late", "champion"), models.alias(conn, "late", "challenger")


def kinds(keep: Keep) -> list[str]:
    with keep.db.read() as conn:
        assert events.verify(conn) == []
        return [event.kind for event in events.history(conn)]


def advance(keep: Keep, step: int = 1) -> None:
    keep.db.write(
        lambda conn: rollout.advance(conn, "late", version=2, step=step, steps=STEPS, now=2.0, because="time")
    )


def promote(keep: Keep, version: int = 2) -> None:
    keep.db.write(lambda conn: rollout.promote(conn, "late", version=version, now=3.0, because="time"))


def abort(keep: Keep, version: int = 2) -> None:
    keep.db.write(lambda conn: rollout.abort(conn, "late", version=version, now=3.0, because="errors"))


def test_step_by_step_to_champion(two: Project) -> None:
    with two.opened() as keep:
        assert (routes(keep), alias(keep)) == (SHADOW, (1, 2))
        for _ in range(2):
            advance(keep)
            assert (routes(keep), alias(keep)) == (CANARY, (1, 2))
        advance(keep, step=0)
        assert routes(keep) == CANARY
        for _ in range(2):
            promote(keep)
            assert (routes(keep), alias(keep)) == ({2: (1.0, "stable")}, (2, None))
        advance(keep)
        abort(keep)
        assert (routes(keep), alias(keep)) == ({2: (1.0, "stable")}, (2, None))
        assert kinds(keep)[3:] == ["rollout.started", "rollout.advanced", "version.promoted"]


def test_an_abort_gives_everything_back(two: Project) -> None:
    with two.opened() as keep:
        advance(keep)
        for _ in range(2):
            abort(keep)
            assert (routes(keep), alias(keep)) == ({1: (1.0, "stable")}, (1, None))
        promote(keep)
        assert alias(keep) == (1, None)
        assert kinds(keep)[3:] == ["rollout.started", "rollout.advanced", "rollout.aborted"]
    before = two.state()
    applied = two.apply()
    assert (applied.champion, applied.note) == (False, "version 1 is the champion; version 2 had its rollout")
    assert two.state() == before


def test_another_version_in_its_place_is_not_promoted(two: Project) -> None:
    two.declare(lambda said: said["train"]["params"].update(C=0.25))
    assert two.apply().version == 3
    with two.opened() as keep:
        promote(keep, version=2)
        assert alias(keep) == (1, 3)
        with keep.db.read() as conn:
            started = events.history(conn, kind="rollout.started", newest_first=True)[0]
        assert (started.subject, started.data["replaces"]) == ("late@3", 2)


def test_back_to_the_champion_ends_the_rollout_of_another(two: Project) -> None:
    two.declare(lambda said: said["train"]["params"].update(C=1.0))
    applied = two.apply()
    assert (applied.version, applied.champion) == (1, True)
    with two.opened() as keep:
        assert (routes(keep), alias(keep)) == ({1: (1.0, "stable")}, (1, None))
        assert kinds(keep)[-1] == "rollout.aborted"


def test_rollback_ends_a_rollout_and_goes_to_the_champion_before(two: Project) -> None:
    with two.opened() as keep:
        promote(keep)
        back = keep.db.write(lambda conn: rollout.roll_back(conn, "late", to=None, now=4.0, because="bad"))
        assert (back.version, routes(keep), alias(keep)) == (1, {1: (1.0, "stable")}, (1, None))
        again = keep.db.write(lambda conn: rollout.roll_back(conn, "late", to=None, now=5.0, because="good"))
        assert (again.version, alias(keep)) == (2, (2, None))
        for target, model in ((9, "late"), (None, "other")):
            head = kinds(keep)
            with pytest.raises(NotFound):
                keep.db.write(
                    lambda conn, target=target, model=model: rollout.roll_back(
                        conn, model, to=target, now=6.0, because="no"
                    )
                )
            assert kinds(keep) == head
            assert alias(keep) == (2, None)


def test_a_move_that_fails_moves_nothing(two: Project) -> None:
    with two.opened() as keep:
        before = (routes(keep), alias(keep), kinds(keep))

        def work(conn: object) -> None:
            rollout.promote(conn, "late", version=2, now=3.0, because="time")  # type: ignore[arg-type]
            raise RuntimeError("just now")

        with pytest.raises(RuntimeError, match="just now"):
            keep.db.write(work)
        assert (routes(keep), alias(keep), kinds(keep)) == before
