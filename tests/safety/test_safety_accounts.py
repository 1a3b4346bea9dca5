"""Users, tokens, sessions and roles, as the database keeps them."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text

from modelkeep.core.errors import Conflict, Invalid, ModelkeepError, NotFound, Refused
from modelkeep.registry import access, access_secrets, events
from modelkeep.registry.access import Accounts
from modelkeep.registry.access_rights import RIGHTS, ROLES, Place, Principal, of_roles, of_scopes, place
from modelkeep.store.access_tables import access_tokens
from modelkeep.store.database import Database

NOW = 1_700_000_000.0
BY = {"now": NOW, "actor": "root"}
EVERYTHING = Place()


def seen(db: Database) -> Accounts:
    with db.read() as conn:
        return access.load(conn)


def kinds(db: Database) -> list[tuple[str, str, str]]:
    with db.read() as conn:
        assert events.verify(conn) == []
        return [(event.kind, event.subject, event.actor) for event in events.history(conn)]


def with_admin(db: Database) -> None:
    db.write(lambda conn: access.add_user(conn, "root", "", **BY))
    db.write(lambda conn: access.grant(conn, "root", "admin", EVERYTHING, **BY))


def test_every_change_is_seen_and_is_an_event(db: Database) -> None:
    with_admin(db)
    before = seen(db).generation
    db.write(lambda conn: access.add_user(conn, "anna", "", **BY))
    db.write(lambda conn: access.grant(conn, "anna", "writer", place("model:flights"), **BY))
    told = db.write(lambda conn: access.create_token(conn, "anna", "ci", scopes=["predict"], rate=5, **BY))
    found = seen(db)
    assert found.generation > before
    assert found.users["anna"].roles == (("writer", Place("model", "flights")),)
    key, digest = access_secrets.split(told) or ("", "")
    token = found.tokens[key]
    assert (token.user, token.name, token.scopes, token.rate, token.expires) == (
        "anna",
        "ci",
        ("predict",),
        5,
        None,
    )
    assert access_secrets.same(token.digest, digest)
    db.write(lambda conn: access.withdraw(conn, "anna", "writer", place("model:flights"), **BY))
    db.write(lambda conn: access.revoke_token(conn, "anna", "ci", **BY))
    db.write(lambda conn: access.remove_user(conn, "anna", **BY))
    assert list(seen(db).users) == ["root"] and not seen(db).tokens
    names = "user.added role.granted user.added role.granted token.created role.revoked token.revoked user.removed"
    assert [kind for kind, _, _ in kinds(db)] == names.split()
    assert {actor for _, _, actor in kinds(db)} == {"root"}


def test_nothing_kept_lets_its_reader_in(db: Database) -> None:
    with_admin(db)
    hashed = access_secrets.hash_password("correct horse battery")
    db.write(lambda conn: access.set_password(conn, "root", hashed, **BY))
    told = db.write(lambda conn: access.create_token(conn, "root", "ci", **BY))
    secret = told[-43:]  # all of it, which may hold underscores
    with db.read() as conn:
        rows = [*conn.execute(text("SELECT * FROM users")), *conn.execute(text("SELECT * FROM access_tokens"))]
        rows += list(conn.execute(text("SELECT * FROM events")))
    assert not any("correct horse" in str(row) or secret in str(row) for row in rows)
    assert hashed.startswith("$argon2id$")


def test_passwords(db: Database) -> None:
    hashed = access_secrets.hash_password("pässword-Ⅳ-ok")
    assert access_secrets.verify_password(hashed, "pässword-Ⅳ-ok")
    assert access_secrets.verify_password(hashed, "pa\u0308ssword-IV-ok")  # the same, typed elsewhere
    assert not access_secrets.verify_password(hashed, "pässword-Ⅴ-ok")
    assert not access_secrets.verify_password("", "")
    assert not access_secrets.verify_password("rubbish", "rubbish rubbish")
    assert not access_secrets.verify_password(hashed, "x" * 100_000)
    for wrong in ("", "short", "x" * 1025):
        with pytest.raises(Invalid, match="12 to 1024"):
            access_secrets.hash_password(wrong)


@pytest.mark.parametrize(
    "rubbish", ["", "mk_", "mk_0_0", "Bearer", "mk_" + "0" * 16 + "_" + "é" * 43, "mk_\x00", "🦉"]
)
def test_what_is_no_token_is_none(rubbish: str) -> None:
    assert access_secrets.split(rubbish) is None


def test_rotation_keeps_scopes_and_gives_grace(db: Database) -> None:
    with_admin(db)
    first = db.write(
        lambda c: access.create_token(c, "root", "ci", scopes=["read"], expires=NOW + 100, rate=3, **BY)
    )
    second = db.write(lambda c: access.rotate_token(c, "root", "ci", grace=30, now=NOW + 10, actor="root"))
    third = db.write(lambda c: access.rotate_token(c, "root", "ci", now=NOW + 20, actor="root"))
    tokens = seen(db).tokens
    a, b, c = (access_secrets.split(told)[0] for told in (first, second, third))  # type: ignore[index]
    assert tokens[a].expires == NOW + 40 and tokens[a].kind == "retired"
    assert b not in tokens
    assert (tokens[c].scopes, tokens[c].rate, tokens[c].expires) == (("read",), 3, NOW + 120)
    db.write(lambda conn: access.revoke_token(conn, "root", "ci", **BY))
    assert not seen(db).tokens


def test_a_new_password_ends_sessions_but_not_tokens(db: Database) -> None:
    with_admin(db)
    db.write(lambda c: access.create_token(c, "root", "browser", kind="session", expires=NOW + 9, **BY))
    db.write(lambda c: access.create_token(c, "root", "ci", **BY))
    db.write(lambda c: access.set_password(c, "root", access_secrets.hash_password("x" * 12), **BY))
    assert [token.name for token in seen(db).tokens.values()] == ["ci"]


def test_sessions_end_and_old_ones_are_forgotten(db: Database) -> None:
    with_admin(db)
    told = [
        db.write(lambda c, e=end: access.create_token(c, "root", "browser", kind="session", expires=NOW + e, **BY))
        for end in (5, 50, 500)
    ]
    db.write(lambda c: access.end_session(c, access_secrets.split(told[2])[0], now=NOW + 10, actor="root"))  # type: ignore[index]
    assert list(seen(db).tokens) == [access_secrets.split(told[1])[0]]  # type: ignore[index]


def test_there_is_always_an_admin(db: Database) -> None:
    with_admin(db)
    db.write(lambda c: access.add_user(c, "anna", "", **BY))
    for work in (
        lambda c: access.withdraw(c, "root", "admin", EVERYTHING, **BY),
        lambda c: access.remove_user(c, "root", **BY),
    ):
        with pytest.raises(Refused, match="only admin"):
            db.write(work)
    db.write(lambda c: access.grant(c, "anna", "admin", EVERYTHING, **BY))
    db.write(lambda c: access.remove_user(c, "root", **BY))
    db.write(lambda c: access.remove_user(c, "anna", **BY))  # the last of all may go
    assert not seen(db).users


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        (Conflict, lambda c: access.add_user(c, "root", "", **BY)),
        *(
            (Invalid, lambda c, n=n: access.add_user(c, n, "", **BY))
            for n in ("", "a:b", "a b", "-a", "é", "x" * 129, "a\x00")
        ),
        (Invalid, lambda c: access.grant(c, "root", "king", EVERYTHING, **BY)),
        (NotFound, lambda c: access.grant(c, "nobody", "reader", EVERYTHING, **BY)),
        (NotFound, lambda c: access.withdraw(c, "root", "reader", EVERYTHING, **BY)),
        (NotFound, lambda c: access.remove_user(c, "nobody", **BY)),
        (NotFound, lambda c: access.set_password(c, "nobody", "", **BY)),
        (NotFound, lambda c: access.rotate_token(c, "root", "nothing", **BY)),
        (NotFound, lambda c: access.revoke_token(c, "root", "nothing", **BY)),
        (Invalid, lambda c: access.create_token(c, "root", "", **BY)),
        (Invalid, lambda c: access.create_token(c, "root", "x", scopes=["fly", "read@moon:1"], **BY)),
        (Invalid, lambda c: access.create_token(c, "root", "x", expires=NOW, **BY)),
        *(
            (Invalid, lambda c, r=r: access.create_token(c, "root", "x", rate=r, **BY))
            for r in (-1, float("nan"), float("inf"))
        ),
    ],
)
def test_what_is_refused_changes_nothing(sqlite_url: str, kind: type[ModelkeepError], work: object) -> None:
    db = Database.open(sqlite_url)
    with_admin(db)
    before, told = seen(db), kinds(db)
    with pytest.raises(kind):
        db.write(work)  # type: ignore[arg-type]
    assert (seen(db), kinds(db)) == (before, told)
    db.close()


def test_a_name_is_taken_once_per_user(db: Database) -> None:
    with_admin(db)
    db.write(lambda c: access.create_token(c, "root", "ci", **BY))
    with pytest.raises(Conflict, match="rotate"):
        db.write(lambda c: access.create_token(c, "root", "ci", **BY))
    with db.read() as conn:
        assert len(conn.execute(select(access_tokens)).all()) == 1


def test_nothing_is_allowed_that_was_not_granted() -> None:
    nobody = Principal("x", of_roles([]))
    assert not any(nobody.may(right, kind, "a") for right in RIGHTS for kind in ("everything", "model"))
    assert nobody.names("read", "model") == frozenset()
    assert not Principal("x", of_roles([("king", Place())])).may("read")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_holds_where_it_was_granted(role: str) -> None:
    here = Principal("x", of_roles([(role, place("model:a"))]))
    kind = Principal("x", of_roles([(role, place("model:*"))]))
    everywhere = Principal("x", of_roles([(role, place("everything"))]))
    for right in RIGHTS:
        holds = right in ROLES[role]
        for who, places in (
            (here, {("model", "a")}),
            (kind, {("model", "a"), ("model", "b"), ("model", "*")}),
            (everywhere, {("model", "a"), ("model", "b"), ("model", "*"), ("endpoint", "a"), ("everything", "*")}),
        ):
            for at in [("model", "a"), ("model", "b"), ("model", "*"), ("endpoint", "a"), ("everything", "*")]:
                assert who.may(right, *at) == (holds and at in places), (role, right, at)


def test_scopes_narrow_and_never_widen() -> None:
    reader = of_roles(
        [("reader", place("model:a")), ("writer", place("model:b")), ("reader", place("experiment:*"))]
    )
    narrow = Principal("x", reader, of_scopes(["write@model:a", "read@experiment:7", "admin@model:b"]))
    assert narrow.names("read", "model") == {"a", "b"}
    assert narrow.names("write", "model") == {"b"}
    assert narrow.names("read", "experiment") == {"7"}
    assert not narrow.may("write", "model", "a") and not narrow.may("deploy", "model", "b")
    assert Principal("x", reader, of_scopes(["read"])).names("read", "experiment") is None
    assert not Principal("x", of_roles([("admin", Place())]), of_scopes(["predict"])).may("read")


def test_a_star_of_a_name_is_no_pattern() -> None:
    who = Principal("x", of_roles([("reader", place("model:a*"))]))
    assert who.may("read", "model", "a*") and not who.may("read", "model", "ab")
    for wrong in ("", "everything:x", "model", "model:", "moon:1", "*"):
        with pytest.raises(Invalid):
            place(wrong)
